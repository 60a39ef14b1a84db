"""Any traced network as a bundle: the same answers at every option, or a refusal by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tests.support.deployed import Kind, pixels, plain_of, session_of
from tests.support.residual_networks import (
    KINDS,
    Bottleneck,
    Inverted,
    Loose,
    Network,
    Patchwise,
    PreActivation,
    Twice,
    conv,
    make_images,
    make_plain,
    settled,
)
from torch import Tensor, nn
from torch.nn import functional as F

import fracskip
from fracskip.config import QuantConfig
from fracskip.deployment.bundle import bundle_of
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import BundleError, ConfigError
from fracskip.operating import OperatingPoints
from fracskip.runtime.bundle import encode_bundle, parse_bundle
from fracskip.runtime.operations import ConvOp
from fracskip.runtime.plan import Plan

OPTIONS = ("skip", 2, 4, 8, "full")


def dynamic(plain: nn.Module, options: object = OPTIONS, **others: object) -> DynamicNetwork:
    net = fracskip.convert(
        plain, options, example_input=make_images(1), calibration=[make_images(8)], **others
    )  # type: ignore[arg-type]
    net.operating_points = OperatingPoints(target=0.1)
    return net


def paths(net: DynamicNetwork, count: int, seed: int = 0) -> Tensor:
    """Every image by options drawn for itself."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(net.options), (count, len(net.blocks)), generator=draw)
    for column, block in enumerate(net.blocks):
        if not block.can_be_skipped:
            chosen[:, column].clamp_(min=1)
    return chosen


@pytest.mark.parametrize("kind", [*KINDS, Twice, Loose])
def test_a_bundle_answers_as_its_network_does(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(plain_of(kind)), make_images(12)
    session = session_of(net, tmp_path)
    for option in range(1, len(net.options)):
        decisions = torch.full((len(images), len(net.blocks)), option)
        with torch.no_grad():
            wanted = net(images, decisions=decisions).logits.numpy()
        found = session.run(pixels(images), decisions=decisions.numpy())
        off = np.abs(found.logits - wanted).max(1)
        # A level apart, where two roundings tie, is as much as there may be, and is rare.
        assert (off > 2e-4).sum() <= 1
        assert off.max() < 2e-3
    decisions = paths(net, len(images))
    with torch.no_grad():
        wanted = net(images, decisions=decisions)
    found = session.run(pixels(images), decisions=decisions.numpy())
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)
    cost = session.cost(found)
    np.testing.assert_allclose(cost.image_cp, wanted.cost, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_widths_above_8_bits_execute_on_values_as_they_are(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(make_plain(kind), ["skip", 12, 16]), make_images(8)
    session = session_of(net, tmp_path)
    for option, within in ((12, 2e-2), (16, 2e-3)):
        with torch.no_grad():
            wanted = net(images, decisions=net.forced(option, 8)).logits
        found = session.run(pixels(images), decisions=session.forced(option, 8))
        np.testing.assert_allclose(found.logits, wanted, atol=within)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gates_decide_as_the_network_s_do(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(make_plain(kind)), make_images(16)
    net.operating_points = OperatingPoints(multiplier_curve=((0.01, 60.0), (0.5, -60.0)))
    session = session_of(net, tmp_path)
    seen = set()
    for budget in (0.01, 0.07, 0.5):
        with torch.no_grad():
            wanted = net(images, budget=budget)
        found = session.run(pixels(images), budget=budget)
        np.testing.assert_array_equal(found.decisions, wanted.decisions)
        np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)
        seen |= set(found.decisions.flatten().tolist())
    assert len(seen) > 1  # or nothing was decided


def test_a_second_member_goes_on_from_the_first_gated_block(tmp_path: Path) -> None:
    net, images = dynamic(make_plain(Bottleneck)), make_images(16)
    with torch.no_grad():
        surest = net(images).logits.softmax(1).amax(1)
    middle = float(surest.median())
    net.operating_points = OperatingPoints(
        target=0.1,
        multiplier_curve=((0.01, 60.0), (0.5, -60.0)),
        cascade=((0.05, 0.02, 0.3, middle), (0.2, 0.05, 0.5, middle)),
    )
    with torch.no_grad():
        wanted = net(images, budget=0.1)
    found = session_of(net, tmp_path).run(pixels(images), budget=0.1)
    assert 0 < wanted.escalated.sum() < len(images)
    np.testing.assert_array_equal(found.escalated, wanted.escalated)
    np.testing.assert_array_equal(found.decisions, wanted.decisions)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)


def test_levels_go_from_one_convolution_to_the_next() -> None:
    """Between two convolutions with a ReLU there are no values; elsewhere there are."""
    plan, tensors = bundle_of(dynamic(make_plain(Bottleneck), ["skip", 8, "full"]))
    index, part = next((i, p) for i, p in enumerate(plan.network.parts) if p.gated)
    assert [type(op) for op in part.branch] == [ConvOp] * 3
    assert [op.act for op in part.branch] == ["relu", "relu", "none"]  # type: ignore[union-attr]
    given = [f"parts.{index}.8.{position}.input" in tensors for position in range(3)]
    assert given == [True, False, False]
    assert [op.act for op in part.after] == ["relu"]  # type: ignore[union-attr]


def test_a_skipped_block_hands_on_only_what_its_activation_leaves_alone() -> None:
    def handed_on(kind: Kind) -> list[bool]:
        plan, _ = bundle_of(dynamic(make_plain(kind)))
        return [part.skip_is_identity for part in plan.gated]

    assert handed_on(Bottleneck) == [True, False, True]  # the second has a projection
    assert handed_on(Patchwise) == [True, True, True]
    assert handed_on(PreActivation) == [True, False, True]


def test_parts_that_do_nothing_are_left_out() -> None:
    plan, _ = bundle_of(dynamic(make_plain(Patchwise)))
    fixed = [part.name for part in plan.network.parts if not part.gated]
    assert fixed == ["stem", "blocks.0", "after blocks.2", "head"]


def test_a_static_network_needs_no_gate(tmp_path: Path) -> None:
    net, images = dynamic(make_plain(Inverted), ["8"]), make_images(4)
    found = session_of(net, tmp_path).run(pixels(images))
    with torch.no_grad():
        wanted = net(images).logits
    np.testing.assert_allclose(found.logits, wanted, atol=2e-4)
    assert not found.decisions.any()


def test_what_can_t_be_skipped_can_t_be_forced_to(tmp_path: Path) -> None:
    net = dynamic(make_plain(Inverted))
    session = session_of(net, tmp_path)
    images = pixels(make_images(2))
    decisions = session.forced("skip", 2)
    with pytest.raises(ConfigError, match=r"block blocks.2 has no shortcut .* choose a width"):
        session.run(images, decisions=decisions)


def test_names_and_image_travel_along(tmp_path: Path) -> None:
    net = dynamic(make_plain(Bottleneck), class_names=["a", "b", "c", "d", "e"])
    session = session_of(net, tmp_path)
    assert session.class_names == ("a", "b", "c", "d", "e")
    assert session.image.size == (12, 10)
    assert session.plan.name == "module/Network"
    assert session.plan.gated_names == tuple(block.name for block in net.blocks)


# -- as ONNX models --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, Twice, Loose])
def test_an_onnx_model_answers_as_the_bundle_does(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(plain_of(kind)), make_images(12)
    net.operating_points = OperatingPoints(multiplier_curve=((0.01, 60.0), (0.5, -60.0)))
    session = session_of(net, tmp_path)
    fracskip.export(net, tmp_path / "net.onnx")
    model = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = json.loads(model.get_modelmeta().custom_metadata_map["gated_blocks"])
    assert names == list(session.plan.gated_names)
    seen = set()
    for budget in (0.01, 0.05, 0.2, 0.5):
        wanted = session.run(pixels(images), budget=budget)
        for row, image in enumerate(images):
            given = {"images": image[None].numpy(), "budget": np.full((1, 1), budget, np.float32)}
            logits, decisions = model.run(["logits", "decisions"], given)
            np.testing.assert_array_equal(decisions[0], wanted.decisions[row])
            np.testing.assert_allclose(logits[0], wanted.logits[row], atol=1e-3)
        seen |= set(wanted.decisions.flatten().tolist())
    assert len(seen) > 1


# -- what has no place in a bundle -----------------------------------------------------------------


class Strange(nn.Module):
    """A residual block with something in it that a bundle has no word for."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.project = conv(inputs, outputs, 3, stride), conv(inputs, outputs, 1, stride)
        self.same = inputs == outputs and stride == 1
        self.odd = self.strange()

    def strange(self) -> nn.Module:
        return nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.conv(x)) + (x if self.same else self.project(x))


class Tanhed(Strange):
    def strange(self) -> nn.Module:
        return nn.GELU(approximate="tanh")


class Reflected(Strange):
    def strange(self) -> nn.Module:
        channels = self.conv.out_channels
        return nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")


class Rotated(Strange):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flip(3) + (x if self.same else self.project(x))


class Halved(Strange):
    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.conv(x), 3, 1, 1, divisor_override=2)
        return y + (x if self.same else self.project(x))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Strange, r"blocks.0.odd \(softplus\) has no place in a bundle"),
        (Tanhed, r"blocks.0.odd \(gelu\) .* approximation 'tanh'"),
        (Rotated, r"blocks.0 \(flip\) has no place in a bundle"),
        (Halved, r"blocks.0 \(avg_pool2d\) has no place in a bundle"),
    ],
)
def test_what_a_bundle_has_no_word_for_is_refused_by_name(
    kind: Kind, named: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = dynamic(settled(Network(kind), make_images(8)))
    with pytest.raises(ConfigError, match=named):
        fracskip.export(net, tmp_path / "net.fsk")
    assert not (tmp_path / "net.fsk").exists()


def test_the_paper_s_ranges_are_refused(tmp_path: Path) -> None:
    net = dynamic(make_plain(Bottleneck), "paper", quant=QuantConfig(scheme="paper"))
    with pytest.raises(ConfigError, match="'paper' quantisation is affine"):
        fracskip.export(net, tmp_path / "net.fsk")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in neither .fsk nor .onnx: choose one"):
        fracskip.export(dynamic(make_plain(Bottleneck)), tmp_path / "net.pt")


# -- damaged ones ----------------------------------------------------------------------------------


def rewritten(change: Callable[[dict[str, object]], None]) -> None:
    """Reads a bundle whose plan was changed and signed again."""
    plan, tensors = bundle_of(dynamic(make_plain(Bottleneck), ["skip", 8, "full"]))
    tree = plan.model_dump(by_alias=True, mode="json")
    change(tree)
    data, _ = encode_bundle(Plan.model_validate_json(_json(tree)), tensors)
    parse_bundle(data)


def _json(tree: dict[str, object]) -> str:
    return json.dumps(tree)


def ops_of(tree: dict[str, object], part: int = 2, program: str = "branch") -> list[dict]:
    return tree["network"]["parts"][part][program]  # type: ignore[index,call-overload]


def test_what_is_not_changed_is_read_again() -> None:
    rewritten(lambda tree: None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: ops_of(t)[1].update({"in": [3]}), "takes value 3, which nothing gave yet"),
        (lambda t: ops_of(t)[1].update({"in": [0]}), "takes 8 channels|nothing uses value 1"),
        (lambda t: ops_of(t)[1].update({"groups": 3}), "3 groups do not divide"),
        (lambda t: ops_of(t)[0].update({"channels": [9, 8]}), "takes 9 channels, it gets 8"),
        (lambda t: ops_of(t)[0].update({"act": "tanh"}), "act"),
        (lambda t: ops_of(t)[0].update({"op": "conv3d"}), "op"),
        (lambda t: ops_of(t)[1].update({"kernel": [99, 3]}), "does not fit"),
        (lambda t: ops_of(t, program="after")[0].update({"act": "none"}), "is not 'none'"),
        (lambda t: t["network"].update({"classes": 4}), "4 classes need as many names"),  # type: ignore[attr-defined]
        (lambda t: t["network"]["parts"].pop(), "the last part are not gated"),  # type: ignore[index]
        (lambda t: t["network"]["parts"][2].update({"residual": False}), "no residual sum"),  # type: ignore[index]
        (lambda t: t["network"]["parts"][2].update({"name": "x"}), "does not list"),  # type: ignore[index]
        (lambda t: t.update({"stream": "bf16"}), "stream"),
    ],
)
def test_impossible_plans_are_refused(
    change: Callable[[dict[str, object]], None], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        rewritten(change)


def test_levels_that_a_clamp_can_t_stand_for_are_refused() -> None:
    plan, tensors = bundle_of(dynamic(make_plain(Bottleneck), ["skip", 8, "full"]))
    name = next(f"parts.{i}.8.1" for i, p in enumerate(plan.network.parts) if p.gated)
    changed = {**tensors, f"{name}.zero": np.array([7.0], np.float32)}
    with pytest.raises(BundleError, match=r"zero is not 0, and a clamp must do what relu would"):
        encode_bundle(plan, changed)
    changed = {**tensors, f"{name}.zero": np.array([0.5], np.float32)}
    with pytest.raises(BundleError, match="no levels of 8 bits"):
        encode_bundle(plan, changed)
    missing = {key: value for key, value in tensors.items() if not key.endswith(".8.0.input")}
    with pytest.raises(BundleError, match="lacks tensor"):
        encode_bundle(plan, missing)
