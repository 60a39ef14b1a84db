"""From a trained network of any residual architecture to a dynamic one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fracskip.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    QuantConfig,
)
from fracskip.dynamic.network import DynamicNetwork
from fracskip.errors import ConfigError
from fracskip.models.layers import copy_of
from fracskip.models.registry import name_of
from fracskip.models.structure import Chooser, find_blocks
from fracskip.options import Option, OptionSet
from fracskip.quant.convolution import FractionalLayer

IMAGE = (3, 224, 224)
GATE = GateConfig(
    width=16, output="sensitivity", budget_input=True, standardise=True, block_bias=True
)


def convert(
    model: nn.Module,
    options: OptionSet | str | Iterable[Option | int | str] = "low",
    *,
    gate: GateConfig = GATE,
    quant: QuantConfig | None = None,
    blocks: Chooser = None,
    example_input: Tensor | None = None,
    calibration: Sequence[Tensor] = (),
    image: ImageConfig | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> DynamicNetwork:
    """Makes a residual network dynamic: each of its blocks gets a gate and all options.

    The model is left as it is; its copy inside, `backbone`, keeps its parameters' names. Blocks are
    found by structure (`fracskip.models.structure`); one without a shortcut can't be skipped and
    gets the widths alone. `summary()` lists them.

    Until it is calibrated, low widths execute with steps that fit nothing, and until it is trained,
    its gates decide at random.

    Args:
        model: In evaluation mode, float32, one image batch in, logits (B, N) out.
        options: A preset's name or the options themselves; with 'full' among them the original can
            still be executed.
        gate: Who decides; by default gates that give the sensitivity to an option, at any budget.
        quant: How blocks are quantised; by default with weights of each option's own.
        blocks: Which modules are blocks: paths, or what says so of a path and a module.
        example_input: Images of a shape that the model takes, (B, C, H, W); 224 x 224 RGB if not
            given.
        calibration: Batches of normalised images that initialise ranges and BatchNorm statistics.
        image: Size, channels and normalisation, if not ImageNet's.
        class_names: Of the logits; numbers if not given.
        name: Of the model, such as 'torchvision/resnet50', by which `load` makes it anew.

    Raises:
        ConfigError: saying what about the model or the arguments does not fit.
    """
    model = _unwrapped(model)
    _check(model)
    image = image or _image(example_input)
    twin = copy_of(model).eval()
    structure = find_blocks(twin, (image.channels, *image.size), blocks)
    found = () if blocks is None else tuple(block.name for block in structure.blocks)
    classes = structure.classes
    names = tuple(class_names) if class_names else tuple(map(str, range(classes)))
    if len(names) != classes:
        raise ConfigError(f"{len(names)} class names do not fit {classes} logits: give one each")
    name = name or name_of(twin) or f"module/{type(model).__name__}"
    spec = ModelSpec(
        model=ModelConfig(name=name, blocks=found),
        options=OptionSet.of(options).labels,
        quant=quant or QuantConfig(weights="per_option"),
        gate=gate,
        image=image,
        class_names=names,
        data_name="",
    )
    net = DynamicNetwork(twin, spec, structure).eval()
    if calibration:
        net.calibrate(list(calibration))
    return net


def _image(example: Tensor | None) -> ImageConfig:
    shape = IMAGE if example is None else tuple(example.shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(
            f"example_input of shape {tuple(example.shape) if example is not None else ()} holds no"
            " images: give (images, 1 or 3, height, width)"
        )
    channels, *size = shape
    # As torchvision and timm normalise.
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    return ImageConfig(size=(size[0], size[1]), channels=channels, mean=mean, std=std)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of torch.compile's and of those that spread it over devices."""
    for name in ("_orig_mod", "module"):
        inside = getattr(model, name, None)
        wraps = type(model).__module__.startswith(("torch._dynamo.", "torch.nn.parallel."))
        if wraps and isinstance(inside, nn.Module):
            return _unwrapped(inside)
    return model


def _check(model: nn.Module) -> None:
    """Refuses what can't be converted, or not yet."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a {kind} can't be converted: give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"this {kind} is TorchScript, whose code can't be traced anew: convert the module that "
            "it was scripted from"
        )
    if isinstance(model, DynamicNetwork) or any(
        isinstance(module, FractionalLayer | DynamicNetwork) for module in model.modules()
    ):
        raise ConfigError(f"this {kind} is dynamic already: convert the plain network")
    random = (_BatchNorm, nn.modules.dropout._DropoutNd)
    for path, module in model.named_modules():
        if module.training and (not path or isinstance(module, random)):
            part = f" ({path})" if path else ""
            raise ConfigError(f"this {kind} is in training mode{part}: call eval() on it first")
    values = [*model.named_parameters(), *model.named_buffers()]
    if lacking := [name for name, value in values if value.is_meta]:
        raise ConfigError(
            f"this {kind} has no weights yet ({lacking[0]} is on the meta device): load them first"
        )
    wide = torch.float32
    if other := [(n, v) for n, v in values if v.is_floating_point() and v.dtype != wide]:
        name, value = other[0]
        raise ConfigError(
            f"this {kind} is not in float32 ({name} is {value.dtype}): call float() on it first; "
            "training can still use autocast"
        )
