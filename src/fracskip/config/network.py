"""What a network is: image, backbone, quantisation, gate, options, as typed, frozen values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fracskip.options import OptionSet

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
MAX_EXTENT = 65535  # pixels of an image's side
MAX_PIXELS = 1 << 24  # of an image
MAX_BLOCKS = 4096
MAX_WIDTH = 65535  # of a gate
Pixels = Annotated[int, Field(ge=8, le=MAX_EXTENT)]
# What float32 holds, and whose reciprocal it holds.
Mean = Annotated[float, Field(ge=-1e38, le=1e38)]
Deviation = Annotated[float, Field(ge=1e-38, le=1e38)]
# Of photographs in colour, as torchvision's and timm's networks expect them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of a list in a file its first fault is reported, and no more of it is read.
FIRST_FAULT = FailFast()
Texts = Annotated[tuple[str, ...], FIRST_FAULT]
# A preset's name or a list of options, kept as labels.
OptionLabels = Annotated[tuple[str, ...], BeforeValidator(lambda value: OptionSet.of(value).labels)]


class Frozen(BaseModel):
    """Unknown keys, changes, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageConfig(Frozen):
    """How pixels become the network's input; it travels with every checkpoint.

    Attributes:
        size: Height and width in pixels.
        resize: Shorter side, in pixels, that images are brought to before the centre of `size` is
            cut out of them (0: what is cut out reaches to the nearer edges). At least the shorter
            side of `size`. Training varies its crops within what `view` holds.
        channels: 1 (grey) or 3 (RGB).
        mean: Per-channel mean, in units of pixel / 255. The defaults are CIFAR-10's; a recipe
            takes ImageNet's for image folders.
        std: Per-channel standard deviation, in the same units.
    """

    size: tuple[Pixels, Pixels] = (32, 32)
    resize: Annotated[int, Field(ge=0, le=MAX_EXTENT)] = 0
    channels: Literal[1, 3] = 3
    mean: Annotated[tuple[Mean, ...], FIRST_FAULT] = (0.4914, 0.4822, 0.4465)
    std: Annotated[tuple[Deviation, ...], FIRST_FAULT] = (0.2470, 0.2435, 0.2616)

    @property
    def view(self) -> ImageConfig:
        """What is seen of an image before its centre is cut out, as an image of its own.

        It has the proportions of `size` and is `resize` pixels on its shorter side.
        """
        if not self.resize:
            return self
        short = min(self.size)
        height, width = (round(side * self.resize / short) for side in self.size)
        return self.model_copy(update={"size": (height, width), "resize": 0})

    @model_serializer(mode="wrap")
    def _as_before_it_could_resize(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `resize` where it is 0: readers that do not know it read the same as ever."""
        tree: dict[str, Any] = dump(self)
        if not self.resize:
            tree.pop("resize", None)
        return tree

    @model_validator(mode="after")
    def _what_is_seen_has_a_size(self) -> ImageConfig:
        if self.resize and self.resize < min(self.size):
            raise ValueError(
                f"resize {self.resize} is smaller than the image of {self.size[0]}x{self.size[1]} "
                f"that is cut out: give {min(self.size)} pixels at least, or 0"
            )
        height, width = self.view.size
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"an image of {height}x{width} has more than {MAX_PIXELS:,} pixels: make it smaller"
            )
        return self

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> ImageConfig:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need {self.channels} values each, one a channel; "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        return self


class ModelConfig(Frozen):
    """The backbone.

    Attributes:
        name: See `fracskip.models.create_backbone`; of a converted module, its class.
        blocks: Paths of the modules that gates decide for; () finds them by structure.
    """

    name: str = "resnet38"
    blocks: Annotated[Texts, Field(max_length=MAX_BLOCKS)] = ()


class QuantConfig(Frozen):
    """How a block is quantised.

    Attributes:
        scheme: 'lsq' (symmetric per-channel weights and learned step sizes: Esser et al., ICLR
            2020; a range and a BatchNorm per option, gradients masked where clipped) or 'paper'
            (affine per tensor, min/max, one range and one BatchNorm for all widths).
        weights: 'shared' (one tensor for all options) or 'per_option' (each option's weights start
            as the backbone's and are trained by themselves; a deployed network holds each option's
            integers anyway).
        calibration_images: Training images that initialise ranges and BatchNorm statistics.
        stream: What flows between blocks: 'float', or 'int8' (unsigned 8-bit integers with one
            learned step per stage; what no gate decides for - the first block, projections, what
            lies between blocks - then runs at 8 bits too). Only 'lsq' quantisation has the
            latter.
        stem: With stream 'int8', what lies before the first block: at '8' bits or in 'full'.
        head: Likewise what lies behind the last block.
    """

    scheme: Literal["lsq", "paper"] = "lsq"
    weights: Literal["shared", "per_option"] = "shared"
    calibration_images: Annotated[int, Field(ge=1)] = 1024
    stream: Literal["float", "int8"] = "float"
    stem: Literal["8", "full"] = "8"
    head: Literal["8", "full"] = "8"

    @model_validator(mode="after")
    def _integers_are_lsq(self) -> QuantConfig:
        if self.stream == "int8" and self.scheme == "paper":
            raise ValueError(
                "stream 'int8' needs scheme 'lsq': the paper's affine ranges have no fixed grid"
            )
        return self


class GateConfig(Frozen):
    """Who decides.

    Attributes:
        kind: 'recurrent' (the paper's: one shared LSTM over the blocks) or 'feedforward'.
        width: Features a gate sees of its block's input, and the LSTM's width.
        budget_input: Whether the gate also takes the target budget as an input.
        standardise: Whether calibration scales the gate's weights so that its logits start with
            deviation 1 over images. Without it, pooled inputs that hardly differ between images
            leave decisions that do not either, and a small gradient to change it.
        block_bias: Whether a recurrent gate, whose output layer all blocks share, also has a bias
            of each block's own. (A feedforward gate has an output layer per block anyway.)
        output: What the last layer gives for an option: its 'logit', or the logarithm of the
            prediction's 'sensitivity' to it. Sensitivities add up over blocks, so the multiplier
            of cost is a price of computation, and many widths are weighed rightly. Logits alone
            say which option, not by how much; a multiplier then only orders the decisions.
    """

    kind: Literal["recurrent", "feedforward"] = "recurrent"
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 10
    budget_input: bool = False
    standardise: bool = False
    block_bias: bool = False
    output: Literal["logit", "sensitivity"] = "logit"

    @model_validator(mode="after")
    def _biases_are_shared_once(self) -> GateConfig:
        if self.block_bias and self.kind != "recurrent":
            raise ValueError("block_bias is for 'recurrent': a feedforward gate has one per block")
        return self


class ModelSpec(Frozen):
    """What a network is, so that it can be built again; how it is operated is a value of its own.

    See `fracskip.operating.OperatingPoints`. A spec is never rewritten.
    """

    model: ModelConfig
    options: OptionLabels
    quant: QuantConfig
    gate: GateConfig
    image: ImageConfig
    class_names: Texts
    data_name: str

    @property
    def option_set(self) -> OptionSet:
        """The options as a set."""
        return OptionSet.of(self.options)
