"""Any residual network becomes dynamic, and stays what it was where nothing is chosen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.residual_networks import (
    KINDS,
    Bottleneck,
    Inverted,
    Loose,
    Network,
    Patchwise,
    Twice,
    make_images,
    make_plain,
)
from tests.unit.dynamic.tiny_networks import every_option
from torch import Tensor, nn

import fracskip
from fracskip.config import GateConfig, ImageConfig, ModelSpec, QuantConfig
from fracskip.dynamic import DynamicNetwork, Exploration, convert
from fracskip.errors import CheckpointError, ConfigError, FracskipError
from fracskip.models import create_model, export
from fracskip.quant.convolution import FractionalLayer
from fracskip.quant.normalisation import FractionalBatchNorm2d

Kind = type[nn.Module]
OPTIONS = ("skip", 4, 16, "full")
PLAIN_GATE = GateConfig(width=5)


def make_dynamic(kind: Kind, options: Any = OPTIONS, **others: Any) -> DynamicNetwork:
    settings: dict[str, Any] = {
        "gate": PLAIN_GATE,
        "example_input": make_images(1),
        "calibration": [make_images(8)],
    }
    return convert(make_plain(kind), options, **{**settings, **others})


def allowed(net: DynamicNetwork, decisions: Tensor) -> Tensor:
    """The same with the cheapest width in place of a skip that can't be."""
    bars = torch.tensor([not block.can_be_skipped for block in net.blocks])
    return torch.where(bars & (decisions == 0), 1, decisions)


@pytest.mark.parametrize("kind", KINDS)
def test_in_full_it_is_the_network_that_it_was(kind: Kind) -> None:
    plain, images = make_plain(kind), make_images()
    net = make_dynamic(kind)
    with torch.no_grad():
        found = net(images, decisions=net.forced("full", len(images)))
    torch.testing.assert_close(found.logits, plain(images), rtol=1e-5, atol=1e-5)
    assert (found.cost == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_more_bits_the_nearer(kind: Kind) -> None:
    plain, images = make_plain(kind), make_images(8)
    net = make_dynamic(kind, [2, 4, 8, 16])
    with torch.no_grad():
        off = [
            float((net(images, decisions=net.forced(b, 8)).logits - plain(images)).abs().mean())
            for b in (2, 4, 8, 16)
        ]
        size = float(plain(images).std())
    assert off[3] < 0.01 * size
    assert off[2] < 0.1 * size
    assert off[3] < off[2] < off[1] < off[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_keeps_its_names_and_is_left_alone(kind: Kind) -> None:
    plain = make_plain(kind)
    before = copy.deepcopy(plain.state_dict())
    net = make_dynamic(kind)
    inside = {
        name.removeprefix("backbone."): value
        for name, value in net.state_dict().items()
        if name.startswith("backbone.")
    }
    assert before.keys() <= inside.keys()
    for name, value in before.items():
        assert torch.equal(plain.state_dict()[name], value)
        assert torch.equal(inside[name], value)
    assert not any(isinstance(module, FractionalLayer) for module in plain.modules())
    # Other weights of the same network go in by name.
    other = make_plain(kind, seed=1)
    missing = net.backbone.load_state_dict(other.state_dict(), strict=False)
    assert not missing.unexpected_keys
    images = make_images()
    found = net(images, decisions=net.forced("full", len(images))).logits
    torch.testing.assert_close(found, other(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_takes_its_own_path(kind: Kind) -> None:
    net, images = make_dynamic(kind), make_images(8)
    decisions = allowed(net, every_option(net, len(images)))
    with torch.no_grad():
        together = net(images, decisions=decisions).logits
        alone = [
            net(images[i : i + 1], decisions=decisions[i : i + 1]).logits
            for i in range(len(images))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_block_hands_its_shortcut_on(kind: Kind) -> None:
    """As the plain network does whose branch adds nothing."""
    plain, images = make_plain(kind), make_images()
    net = make_dynamic(kind)
    decisions = net.forced("full", len(images))
    decisions[:, 2] = 0
    last = plain.get_submodule(net.blocks[2].name)
    with torch.no_grad():
        for name in ("bn3.weight", "bn3.bias", "conv2.weight", "project.1.weight",
                     "project.1.bias", "scale"):  # fmt: skip
            held = dict(last.named_parameters()).get(name)
            if held is not None and (name != "conv2.weight" or not hasattr(last, "bn3")):
                held.zero_()
        found = net(images, decisions=decisions)
        torch.testing.assert_close(found.logits, plain(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cost, torch.full((len(images),), 2 / 3))


def test_a_block_without_a_shortcut_is_never_skipped() -> None:
    net = make_dynamic(Inverted)
    assert [block.can_be_skipped for block in net.blocks] == [True, False, True]
    images = make_images()
    net.operating_points = net.operating_points.changed(multiplier=100.0)
    with torch.no_grad():
        decisions = net(images).decisions
        mixed = net(images, exploration=Exploration(torch.Generator(), noise=5.0))
    assert (decisions == torch.tensor([0, 1, 0])).all()
    assert (mixed.decisions[:, 1] > 0).all()
    assert mixed.logits.isfinite().all()
    with pytest.raises(ConfigError, match=r"block blocks.2 has no shortcut .* choose a width"):
        net(images, decisions=net.forced("skip", len(images)))


def test_options_that_are_not_there_are_named() -> None:
    net = make_dynamic(Bottleneck, "low")
    with pytest.raises(ConfigError, match="option 'full' is not in this set; it has skip, 2, 3"):
        net.forced("full", 1)


def test_a_cifar_resnet_is_converted_as_what_it_is() -> None:
    plain = create_model("resnet14").eval()
    net = convert(plain, [8], example_input=torch.zeros(1, 3, 32, 32))
    assert net.spec.model.name == "resnet14"


# -- what torch does with modules -----------------------------------------------------------------


def test_any_batch_and_one_size() -> None:
    net, plain = make_dynamic(Patchwise), make_plain(Patchwise)
    for count in (1, 3):
        images = make_images(count)
        with torch.no_grad():
            found = net(images, decisions=net.forced("full", count)).logits
            torch.testing.assert_close(found, plain(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"\(3, 16, 16\) do not fit: .* \(3, 12, 10\), .*convert"):
        net(make_images(2, (16, 16)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_a_network_of_its_own(kind: Kind) -> None:
    net, images = make_dynamic(kind), make_images()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = net(images).logits
        for value in net.parameters():
            value.zero_()
        assert torch.equal(twin(images).logits, before)
        assert not torch.equal(net(images).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_needs_the_plain_network_only(kind: Kind, tmp_path: Path) -> None:
    net, images = make_dynamic(kind), make_images()
    path = tmp_path / "net.safetensors"
    fracskip.save(net, path)
    again = fracskip.load(path, model=make_plain(kind, seed=5))
    with torch.no_grad():
        assert torch.equal(again(images).logits, net(images).logits)
    assert again.spec == net.spec
    with pytest.raises(FracskipError, match=r"module/Network.* pass it along"):
        fracskip.load(path)
    other = Inverted if kind is not Inverted else Bottleneck
    with pytest.raises((CheckpointError, ConfigError)):
        fracskip.load(path, model=make_plain(other))


@pytest.mark.filterwarnings("ignore:weights of 'blocks.1.conv2':UserWarning")
def test_a_checkpoint_of_folded_weights_needs_the_network_that_they_were_of(tmp_path: Path) -> None:
    plain, images = make_plain(Bottleneck), make_images()
    nn.utils.parametrizations.weight_norm(plain.get_submodule("blocks.1.conv2"))
    net = convert(plain, [4, "full"], example_input=images, calibration=[images])
    fracskip.save(net, tmp_path / "net.safetensors")
    again = fracskip.load(tmp_path / "net.safetensors", model=plain)
    assert torch.equal(in_full(again, images), in_full(net, images))
    torch.testing.assert_close(in_full(again, images), plain(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_as_other_modules_do(kind: Kind) -> None:
    net, images = make_dynamic(kind), make_images(8)
    with torch.no_grad():
        decisions = net(images).decisions
        logits = net(images, decisions=decisions).logits
        last = net.to(memory_format=torch.channels_last)(
            images.contiguous(memory_format=torch.channels_last), decisions=decisions
        )
        torch.testing.assert_close(last.logits, logits, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(images, decisions=decisions).logits.float()
        assert (rough - logits).abs().mean() < 0.1 * logits.std()
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="eager")
        torch.testing.assert_close(compiled(images, decisions=decisions).logits, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_learns(kind: Kind) -> None:
    """Every weight, step and gate gets a gradient from images that take every option."""
    net, images = make_dynamic(kind, quant=QuantConfig(weights="per_option")), make_images(32)
    net.train()
    out = net(
        images, exploration=Exploration(torch.Generator().manual_seed(0), noise=3.0, dense=True)
    )
    nn.functional.cross_entropy(out.logits, torch.arange(32) % 5).backward()
    lacking = [name for name, value in net.named_parameters() if value.grad is None]
    assert not lacking
    norms = [m for m in net.modules() if isinstance(m, FractionalBatchNorm2d)]
    assert not any(norm.training for norm in norms)


class Careful(nn.Module):
    """Looks at the values that it sees, and says in an adapter what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_plain(Bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1e6:
            raise ValueError("not normalised")
        return self.inner(x)


def in_full(net: DynamicNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images, budget=1.0, decisions=net.forced("full", len(images))).logits


def test_the_root_may_have_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ADAPTERS", {})
    net, images = Careful().eval(), make_images()
    with pytest.raises(ConfigError, match=r"Careful cannot be traced .*register_adapter"):
        convert(net, [8, "full"], example_input=images)
    fracskip.register_adapter(Careful, lambda careful, x: careful.inner(x))
    found = convert(net, [8, "full"], example_input=images)
    torch.testing.assert_close(in_full(found, images), net(images), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_wraps_a_network_is_taken_off(wrap: Any) -> None:
    plain, images = make_plain(Bottleneck), make_images()
    net = convert(wrap(plain), [8, "full"], example_input=images)
    assert "stem.0.weight" in net.backbone.state_dict()
    torch.testing.assert_close(in_full(net, images), plain(images), rtol=0, atol=0)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_what_evaluation_leaves_out_is_said() -> None:
    plain = make_plain(Bottleneck)
    plain.drop = Random().eval()
    plain.drop.drop_prob = 0.2
    with pytest.warns(UserWarning, match=r"'drop' \(Random\) .* off in training"):
        convert(plain, [8], example_input=make_images(1))


@pytest.mark.parametrize("stream", ["float", "int8"])
@pytest.mark.parametrize("kind", [Inverted, Loose])
def test_it_is_pickled_and_averaged_as_other_modules_are(kind: Kind, stream: str) -> None:
    torch.manual_seed(0)
    plain = kind().eval() if kind is Loose else make_plain(kind)  # type: ignore[call-arg]
    images, quant = make_images(), QuantConfig(weights="per_option", stream=stream)  # type: ignore[arg-type]
    net = convert(plain, [4, 8], quant=quant, example_input=images, calibration=[images])
    again = pickle.loads(pickle.dumps(net))
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    with torch.no_grad():
        wanted = net(images, budget=0.05)
        for other in (again, average.module):
            found = other(images, budget=0.05)
            assert torch.equal(found.logits, wanted.logits)
            assert torch.equal(found.decisions, wanted.decisions)
    assert not hasattr(net, "cifar")


@pytest.mark.parametrize("kind", KINDS)
def test_plain_it_has_the_state_that_it_had(kind: Kind) -> None:
    plain, images = make_plain(kind), make_images()
    found = make_dynamic(kind).plain()
    state = found.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    torch.testing.assert_close(found(images), plain(images), rtol=0, atol=0)


def test_images_that_are_no_numbers_are_refused() -> None:
    net, images = make_dynamic(Bottleneck), make_images()
    images[1, 0, 2, 3] = torch.nan
    with pytest.raises(ConfigError, match="images hold NaN or infinite values"):
        net(images)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.drop.train() and net, r"Network is in training mode \(drop\): call eval"),
        (lambda net: net.train(), r"Network is in training mode: call eval\(\)"),
        (lambda net: net.half(), r"not in float32 \(stem.0.weight is torch.float16\): call float"),
        (lambda net: net.to("meta"), r"no weights yet \(stem.0.weight is on the meta device\)"),
        (lambda net: convert(net, [8], example_input=make_images(1)), "is dynamic already"),
        (lambda net: nn.Sequential(convert(net, [8], example_input=make_images(1)).backbone).eval(),
         "is dynamic already"),
        (lambda net: torch.jit.trace(net, make_images(1)), "is TorchScript, whose code can't be"),
        (lambda net: net.forward, "a method can't be converted: give a torch.nn.Module"),
    ],
)  # fmt: skip
def test_what_can_not_be_converted_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(change(make_plain(Bottleneck)), [8], example_input=make_images(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ["a", "b"]}, "2 class names do not fit 5 logits"),
        ({"example_input": torch.zeros(3, 8)}, r"shape \(3, 8\) holds no images"),
        ({"example_input": torch.zeros(1, 4, 8, 8)}, r"shape \(1, 4, 8, 8\) holds no images"),
        ({"options": "lower"}, "option preset 'lower' is unknown"),
        ({"options": ["skip"]}, "'skip' alone executes nothing"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"options": [8], "example_input": make_images(1), **arguments}
    with pytest.raises(ConfigError, match=message):
        convert(make_plain(Bottleneck), **settings)


def test_a_budget_out_of_range_is_refused() -> None:
    net = make_dynamic(Bottleneck, "low", gate=GateConfig(budget_input=True))
    for budget in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigError, match="out of range"):
            net(make_images(), budget=budget)
    with pytest.raises(ConfigError, match="needs a budget"):
        net(make_images())
    assert net(make_images(), budget=0.02).cost.shape == (6,)


def test_the_summary_names_every_block() -> None:
    rows = make_dynamic(Inverted, "low").summary().splitlines()
    assert rows[0].split() == ["block", "kind", "MACs", "options"]
    assert rows[1].endswith("not gated: the first block is always executed")
    assert rows[2].split()[:2] == ["blocks.1", "Inverted"]
    assert rows[2].endswith("skip 2 3 4 6 8")
    assert rows[3].endswith("  2 3 4 6 8")
    assert int(rows[2].split()[2].replace(",", "")) > 0
    assert len(rows) == 5


@pytest.mark.parametrize("kind", [Twice, Loose])
def test_blocks_without_a_module_of_their_own(kind: Kind) -> None:
    torch.manual_seed(0)
    net = (kind() if kind is Loose else Network(kind)).eval()
    dyn = convert(net, [2, 8, "full"], example_input=make_images(1), calibration=[make_images(8)])
    images = make_images()
    with torch.no_grad():
        full = dyn(images, budget=1.0, decisions=dyn.forced("full", 6)).logits
        torch.testing.assert_close(full, net(images))
        assert not torch.equal(dyn(images, decisions=dyn.forced(2, 6)).logits, full)
    gated = [row for row in dyn.summary().splitlines()[1:] if "not gated" not in row]
    assert len(gated) == len(dyn.blocks) > 0


def test_names_and_normalisation_are_taken_along() -> None:
    image = ImageConfig(size=(12, 10), mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    names = [f"kind {index}" for index in range(5)]
    net = make_dynamic(Patchwise, image=image, class_names=names, name="mine")
    assert isinstance(net.spec, ModelSpec)
    assert net.spec.class_names == tuple(names)
    assert (net.spec.image, net.spec.model.name) == (image, "mine")
    usual = make_dynamic(Patchwise)
    assert usual.spec.image.mean == (0.485, 0.456, 0.406)
    assert usual.spec.image.size == (12, 10)
