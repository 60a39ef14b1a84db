"""Networks whose stream between blocks is of 8-bit integers."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import (
    COUNT,
    DEFAULT_OPTIONS,
    every_option,
    make_images,
    make_network,
    make_spec,
)
from torch import Tensor

from fracskip import checkpoint, legacy
from fracskip.config import ModelSpec
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.folding import FoldedLayer, fold
from fracskip.options import Option

SPEC = make_spec(stream="int8")


def stages(net: DynamicNetwork) -> tuple[int, ...]:
    return tuple(block.stage for block in net.sections.every)


def folded(net: DynamicNetwork, block: str, option: str) -> tuple[FoldedLayer, FoldedLayer]:
    """A block's two convolutions at an option."""
    module = net.backbone.get_submodule(block)
    one, two = (
        fold(getattr(module, f"conv{i}"), getattr(module, f"bn{i}"), Option.parse(option))
        for i in (1, 2)
    )
    return one, two


def levels(net: DynamicNetwork, x: Tensor, stage: int) -> Tensor:
    assert net.stream is not None
    return x.detach() / net.stream.step(stage).detach()


def assert_on_grid(net: DynamicNetwork, x: Tensor, stage: int) -> None:
    found = levels(net, x, stage)
    whole = found.round()
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
    assert whole.min() >= 0
    assert whole.max() <= 255


def test_stages_are_runs_of_blocks_between_projections() -> None:
    net = make_network(SPEC)
    assert stages(net) == (0, 0, 1, 1, 2, 2)
    assert net.stream is not None
    steps = net.stream.steps
    assert steps.shape == (3,)
    assert len(set(steps.tolist())) == 3  # each was initialised by what flows there
    assert (steps > 0).all()


@pytest.mark.parametrize("option", DEFAULT_OPTIONS)
@torch.no_grad()
def test_whatever_is_chosen_the_stream_is_on_the_grid(option: str) -> None:
    net = make_network(SPEC)
    x = net.begin(make_images(SPEC, COUNT))
    assert_on_grid(net, x, 0)
    for block, stage in zip(net.blocks, stages(net)[1:], strict=True):
        x = block.execute(x, Option.parse(option))
        assert_on_grid(net, x, stage)
        assert x.unique().numel() > 20


@torch.no_grad()
def test_skipping_leaves_values_alone_and_routing_does_not_touch_the_skipped() -> None:
    net = make_network(SPEC)
    x = net.begin(make_images(SPEC, COUNT))
    block = net.blocks[0]
    assert block.execute(x, Option(0)) is x
    assert torch.equal(block._emit(x), x)  # on the grid already: rounding again changes nothing
    choice = torch.tensor([0, 2, 0, 1, 3, 0])
    out = block.route(x, choice)
    assert torch.equal(out[choice == 0], x[choice == 0])
    assert not torch.equal(out[choice == 2], x[choice == 2])


@torch.no_grad()
def test_grouped_images_compute_what_each_computes_alone() -> None:
    net = make_network(SPEC)
    images = make_images(SPEC, COUNT)
    decisions = every_option(net, COUNT)
    together = net(images, decisions=decisions).logits
    for row in range(COUNT):
        alone = net(images[row : row + 1], decisions=decisions[row : row + 1]).logits
        # Sums of another order may move a value by a level.
        torch.testing.assert_close(together[row : row + 1], alone, atol=0.02, rtol=0)


def test_gradients_reach_the_steps_of_all_stages_and_every_part_at_8_bits() -> None:
    net = make_network(make_spec("skip8", stream="int8")).train()
    net(make_images(net.spec, 8), decisions=net.forced("8", 8)).logits.square().mean().backward()
    assert net.stream is not None
    assert net.stream.steps.grad is not None
    assert (net.stream.steps.grad != 0).all()
    for name in ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.1.conv2"):
        conv = net.backbone.get_submodule(name)
        for value in (conv.weight, conv.quantiser.weight_step):
            assert isinstance(value, torch.nn.Parameter)
            assert value.grad is not None
            assert value.grad.any()


def test_8_bits_and_more_have_no_step_of_their_own_at_the_streams_edge() -> None:
    net = make_network(make_spec(["skip", 4, 8, 16, "full"], stream="int8"))
    state = net.state_dict()
    assert state["backbone.layer1.1.conv1.quantiser.activation_step"].shape == (1, 1)  # 4 bits
    assert state["backbone.layer1.1.conv2.quantiser.activation_step"].shape == (3, 1)
    assert state["backbone.layer1.0.conv1.quantiser.activation_step"].shape == (0, 1)
    given = {
        option: [part.input_step is None for part in folded(net, "layer2.0", option)]
        for option in ("4", "8", "16", "full")
    }
    assert given == {
        "4": [False, False],
        "8": [True, False],
        "16": [True, False],
        "full": [True, True],
    }


def test_folded_parts_multiply_out_to_what_is_executed() -> None:
    net = make_network(SPEC)
    x = net.begin(make_images(SPEC, COUNT))
    block, eight = net.blocks[1], Option(8)
    projection = net.backbone.get_submodule("layer2.0.downsample")
    assert fold(projection[0], projection[1], eight).weight.dtype == torch.int8
    first, second = folded(net, "layer2.0", "8")
    y = x.double()
    for part in (first, second):
        assert part.weight_step is not None
        weight = part.weight * (part.weight_step * part.gain)[:, None, None, None]
        if part.input_step is not None:
            y = (y / part.input_step).round().clamp(0, 255) * part.input_step
        y = torch.nn.functional.conv2d(
            y, weight, part.offset, part.layer.stride, part.layer.padding
        )
    with torch.no_grad():
        found = block._branch(x, eight)
    assert ((found - y).abs() > 1e-3).double().mean() < 0.01
    torch.testing.assert_close(found.double(), y, atol=0.1, rtol=0)


def test_the_state_survives_a_file(tmp_path: object) -> None:
    net = make_network(make_spec("skip8", stream="int8", block_bias=True))
    path = f"{tmp_path}/net.safetensors"
    checkpoint.save(net, path)
    again = checkpoint.load(path)
    images = make_images(net.spec, COUNT)
    with torch.inference_mode():
        assert torch.equal(again(images).logits, net(images).logits)
    assert again.spec.quant.stream == "int8"


def test_a_float_stream_adds_nothing_to_the_state() -> None:
    names = make_network(make_spec()).state_dict()
    assert not [name for name in names if "stream" in name or "block_bias" in name]
    assert not [name for name in names if "layer1.0" in name and "quantiser" in name]
    assert not [name for name in names if "downsample" in name and "quantiser" in name]


def test_what_old_checkpoints_do_not_say_means_what_it_did() -> None:
    tree = make_spec().model_dump()
    old = {"quant": ("stream", "weights", "stem", "head"), "gate": ("block_bias", "output")}
    for part, keys in old.items():
        for key in keys:
            del tree[part][key]
    net = make_network(ModelSpec.model_validate(legacy.checkpoint({"spec": tree})["spec"]))
    assert net.spec == make_spec(ends="8")
    assert net.spec.quant.stream == "float"
    assert net.stream is None
    assert not net.spec.gate.block_bias
    # 3 stages of 2 blocks: 5 gated ones of 2 convolutions.
    assert sum("quantiser.weight_step" in name for name in net.state_dict()) == 10


def test_the_price_of_an_int8_stream_by_hand() -> None:
    """resnet14 at 8x8: first block and shortcuts at 8 bits cost 64/1024 of their MACs."""
    floating, whole = make_network(make_spec()).profile, make_network(SPEC).profile
    first = 2 * 8 * 8 * 16 * 16 * 9
    shortcuts = 4 * 4 * 16 * 32 + 2 * 2 * 32 * 64
    assert [block.fixed_bits for block in whole.blocks] == [8] * 6
    assert floating.fixed_macs - whole.fixed_macs == (first + shortcuts) * (1 - 64 / 1024)
    assert whole.backbone_macs == floating.backbone_macs


@pytest.mark.parametrize("stream", ["float", "int8"])
def test_a_walk_and_a_detour_are_forced_decisions(stream: str) -> None:
    net = make_network(make_spec(stream=stream))
    images = make_images(net.spec, COUNT)
    path = [2, 0, 1, 2, 3]
    inputs, logits = net.execute_allocation(images, path)
    decisions = torch.tensor(path).repeat(COUNT, 1)
    with torch.inference_mode():
        assert torch.equal(logits, net(images, decisions=decisions).logits)
        for block, other in ((0, 0), (2, 3), (4, 1)):
            changed = decisions.clone()
            changed[:, block] = other
            wanted = net(images, decisions=changed).logits
            assert torch.equal(net.execute_from(inputs[block], block, other, path), wanted)
    assert torch.equal(
        net.gate_scores_on(net.execute_allocation(images)[0]), net.gate_scores(images)
    )
