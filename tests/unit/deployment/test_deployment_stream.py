"""Traced networks whose blocks hand on 8-bit levels: torch, bundle and ONNX against one another."""

from __future__ import annotations

import json
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
)
from torch import Tensor, nn
from torch.nn import functional as F

import fracskip
from fracskip import checkpoint
from fracskip.config import QuantConfig
from fracskip.deployment.bundle import bundle_of
from fracskip.dynamic import DynamicNetwork
from fracskip.errors import BundleError, ConfigError
from fracskip.operating import OperatingPoints
from fracskip.runtime.bundle import encode_bundle
from fracskip.runtime.operations import AffineOp, ConvOp
from fracskip.runtime.plan import Plan

OPTIONS = ("skip", 2, 4, 8, "full")
INT8 = QuantConfig(weights="per_option", stream="int8")


def dynamic(kind: Kind | type[Loose], options: object = OPTIONS) -> DynamicNetwork:
    images = make_images(8)
    net = fracskip.convert(
        plain_of(kind), options, quant=INT8, example_input=images[:1], calibration=[images]
    )  # type: ignore[arg-type]
    curve = ((0.01, 60.0), (0.5, -60.0))
    net.operating_points = OperatingPoints(target=0.1, multiplier_curve=curve)
    return net


def everywhere(net: DynamicNetwork, option: int, count: int) -> Tensor:
    """One option in all blocks; the first executed one in those that can't be skipped."""
    least = torch.tensor([0 if block.can_be_skipped else 1 for block in net.blocks])
    return torch.full((count, len(net.blocks)), option).maximum(least)


@pytest.mark.parametrize("kind", [*KINDS, Twice, Loose])
def test_a_bundle_answers_as_its_network_does(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(kind), make_images(12)
    session = session_of(net, tmp_path)
    off = []
    for option in range(len(net.options)):
        decisions = everywhere(net, option, len(images))
        with torch.no_grad():
            wanted = net(images, decisions=decisions)
        found = session.run(pixels(images), decisions=decisions.numpy())
        off.append(np.abs(found.logits - wanted.logits.numpy()).max(1))
        np.testing.assert_allclose(session.cost(found).image_cp, wanted.cost, rtol=1e-6)
    # Where two roundings tie, a value may go to either level.
    assert np.mean(np.concatenate(off) > 1e-5) < 0.25
    assert np.concatenate(off).max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_costs_little_accuracy(kind: Kind) -> None:
    """All in full, that is: only stream, fixed parts and projections are of 8 bits."""
    net, images = dynamic(kind), make_images(8)
    with torch.no_grad():
        found = net(images, decisions=everywhere(net, len(OPTIONS) - 1, 8)).logits
        wanted = plain_of(kind)(images)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert not torch.equal(found, wanted)  # it is rounded


@pytest.mark.parametrize("kind", [Bottleneck, Inverted])
def test_levels_are_handed_on(kind: Kind, tmp_path: Path) -> None:
    """Skipped, a block with an identity shortcut gives the very levels that it takes."""
    net, images = dynamic(kind), make_images(8)
    free = [block for block in net.blocks if block.identity_shortcut]
    assert free
    with torch.no_grad():
        for block in free:
            x = net.sections.begin(images) if block is net.blocks[0] else None
            if x is not None:
                assert block.execute(x, net.options[0]) is x
    plan = session_of(net, tmp_path).plan
    skips = [block.skip_is_identity for block in net.blocks]
    assert [part.skip_is_identity for part in plan.gated] == skips


def test_everything_that_no_gate_decides_for_is_of_8_bits(tmp_path: Path) -> None:
    plan, tensors = bundle_of(dynamic(Bottleneck))
    assert plan.cost.stem_bits == plan.cost.head_bits == 8
    fixed = [part for part in plan.network.parts if not part.gated]
    assert {part.options for part in fixed} == {("8",)}
    assert {part.shortcut_option for part in plan.network.parts} == {None, "8"}
    assert {block.fixed_bits for block in plan.cost.blocks} == {8}
    for program in plan.programs:
        convs = [f"{program.name}.{i}" for i, o in enumerate(program.ops) if isinstance(o, ConvOp)]
        for name in convs:
            assert (tensors[f"{name}.weight"].dtype == np.int8) == bool(program.bits), name
    # At 8 bits a block's first convolution takes the stream's levels as they are.
    (first, *_) = (i for i, part in enumerate(plan.network.parts) if part.gated)
    assert f"parts.{first}.4.0.input" in tensors
    assert f"parts.{first}.8.0.input" not in tensors


def test_units_go_into_the_terms_of_linear_operations() -> None:
    """No pass of its own divides by a step, but where a value is needed in two units."""
    plan, _ = bundle_of(dynamic(Bottleneck))
    for part in plan.network.parts:
        assert not any(isinstance(op, AffineOp) for op in part.branch)


def test_zero_points_serve_values_of_both_signs() -> None:
    zeros = {}
    for kind in (Bottleneck, PreActivation, Inverted, Patchwise):
        plan, tensors = bundle_of(dynamic(kind))
        last = len(plan.network.parts) - 1
        zeros[kind] = [float(tensors.get(f"parts.{i}.zero", [0.0])[0]) for i in range(last)]
    assert set(zeros[Bottleneck]) == {0.0}
    assert all(zeros[Inverted])
    assert all(zeros[Patchwise])
    assert any(zeros[PreActivation])


@pytest.mark.parametrize("kind", [*KINDS, Twice, Loose])
def test_an_onnx_model_answers_as_the_bundle_does(kind: Kind, tmp_path: Path) -> None:
    net, images = dynamic(kind), make_images(12)
    session = session_of(net, tmp_path)
    fracskip.export(net, tmp_path / "net.onnx")
    model = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    seen: set[int] = set()
    for budget in (0.01, 0.05, 0.2, 0.5):
        wanted = session.run(pixels(images), budget=budget)
        for row, image in enumerate(images):
            given = {"images": image[None].numpy(), "budget": np.full((1, 1), budget, np.float32)}
            logits, decisions = model.run(["logits", "decisions"], given)
            np.testing.assert_array_equal(decisions[0], wanted.decisions[row])
            np.testing.assert_allclose(logits[0], wanted.logits[row], atol=2e-3)
        seen |= set(wanted.decisions.flatten().tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [Inverted, Bottleneck])
def test_it_learns_and_comes_back_from_a_file(kind: Kind, tmp_path: Path) -> None:
    """Steps of the stream and of fixed parts get gradients; a checkpoint keeps all of them."""
    net, images = dynamic(kind), make_images(8)
    net.train()
    loss = net(images, decisions=everywhere(net, 3, 8)).logits.square().mean()
    loss.backward()
    assert net.stream is not None
    assert net.stream.steps.grad is not None
    assert net.stream.steps.grad.abs().min() > 0
    fixed = net.backbone.get_submodule("fc").quantiser.activation_step  # type: ignore[union-attr]
    assert fixed.grad is not None
    assert fixed.grad.abs().min() > 0
    net.eval()
    net.reestimate([images])
    checkpoint.save(net, tmp_path / "net.safetensors", {})
    twin = checkpoint.load(tmp_path / "net.safetensors", plain_of(kind))
    with torch.no_grad():
        torch.testing.assert_close(
            twin(images, budget=0.2).logits, net(images, budget=0.2).logits, rtol=0, atol=0
        )


class LateActivation(nn.Module):
    """What is added is not what a ReLU gives, and another activation follows the sum."""

    act = staticmethod(F.silu)

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.project = conv(inputs, outputs, 3, stride), conv(inputs, outputs, 1, stride)
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + (x if self.same else self.project(x)))


class Rectified(nn.Module):
    """ReLUs after sums, but the first block takes values of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network(Bottleneck)
        self.net.stem[2] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_what_rounding_can_t_end_is_refused() -> None:
    for plain, named in (
        (Network(LateActivation), "is followed by something else"),
        (Rectified(), "takes values of both signs"),
    ):
        blocks = ["net.blocks.0"] if isinstance(plain, Rectified) else None
        with pytest.raises(ConfigError, match=named):
            fracskip.convert(
                plain.eval(), "low", quant=INT8, example_input=make_images(1), blocks=blocks
            )


def test_grids_that_do_not_fit_are_refused() -> None:
    plan, tensors = bundle_of(dynamic(Bottleneck))
    index = next(i for i, part in enumerate(plan.network.parts) if part.gated)

    def refuse(changes: dict[str, float | None], named: str) -> None:
        changed = dict(tensors)
        for name, value in changes.items():
            if value is None:
                del changed[name]
            else:
                changed[name] = np.array([value], np.float32)
        with pytest.raises(BundleError, match=named):
            encode_bundle(plan, changed)

    name = f"parts.{index}"
    refuse({f"{name}.step": 0.5}, "step is not that of the levels that its shortcut hands on")
    taker = f"parts.{index + 1}.8.0"
    refuse(
        {f"{name}.zero": 3.0, f"{taker}.zero": 3.0},
        "zero is not 0, and a clamp must do what a ReLU would",
    )
    refuse({f"{name}.8.0.zero": 3.0}, "zero is not that of the levels that it takes")
    refuse({f"{name}.step": None}, "lacks tensor")
    refuse({f"{name}.step": -1.0}, "above 0|positive|above zero")
    refuse({f"{name}.4.0.input": None}, "lacks tensor")
    refuse({f"parts.{len(plan.network.parts) - 1}.step": 1.0}, "no place for tensor")


def test_an_int8_stream_begins_with_a_fixed_part() -> None:
    plan, _ = bundle_of(dynamic(Bottleneck))
    tree = plan.model_dump(by_alias=True, mode="json")
    tree["network"]["parts"][0]["branch"] = []
    with pytest.raises(ValueError, match="at least 1 item"):
        Plan.model_validate_json(json.dumps(tree))
    tree["network"]["parts"].pop(0)
    with pytest.raises(ValueError, match="the first and the last part are not gated"):
        Plan.model_validate_json(json.dumps(tree))
    tree = plan.model_dump(by_alias=True, mode="json")
    part = next(part for part in tree["network"]["parts"] if part["gated"])
    part["after"] = [{"op": "act", "in": [0], "act": "silu"}]
    with pytest.raises(ValueError, match="a ReLU may follow a sum"):
        Plan.model_validate_json(json.dumps(tree))
