from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_networks import every_option, make_backbone, make_images, make_network, make_spec
from torch import Tensor, nn

from fracskip.cost import account
from fracskip.dynamic import DynamicNetwork, Mixing, Output, build_network, preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.quant.convolution import FractionalConv2d
from fracskip.quant.normalisation import FractionalBatchNorm2d
from fracskip.quant.quantisers import PaperQuantiser

SCHEMES = ["modern", "paper"]
GATES = ["recurrent", "feedforward"]
COUNT = 6


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def mixing(seed: int = 0, **settings: object) -> Mixing:
    return Mixing(torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_mixing_and_routing_agree_at_equal_decisions(scheme: str, gate: str, noise: float) -> None:
    net = make_network(make_spec(scheme=scheme, gate=gate))
    images = make_images(net.spec, COUNT)
    # The paper's ranges move in training mode, so there the numbers may be compared only where
    # they stand still.
    net.train(scheme == "modern")
    dense = net(images, mixing=mixing(noise=noise, dense=True))
    sampled = net(images, mixing=mixing(noise=noise, sample_rate=0.5))
    net.eval()
    if noise:
        assert len(dense.decisions.unique()) == 4
        assert (dense.decisions != net(images).decisions).any()
    else:
        routed = net(images)
        assert torch.equal(routed.decisions, dense.decisions)
        assert torch.equal(routed.decisions, sampled.decisions)
        close(routed.logits, dense.logits)
        close(routed.cost, dense.cost)
    for out in (dense, sampled):
        forced = net(images, decisions=out.decisions)
        assert torch.equal(forced.decisions, out.decisions)
        close(forced.logits, out.logits)
        close(forced.cost, out.cost, 1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_training_moves_the_papers_ranges_and_nothing_else(dense: bool) -> None:
    for scheme in SCHEMES:
        net = make_network(make_spec(scheme=scheme)).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net(make_images(net.spec) * 3, mixing=mixing(dense=dense, noise=1.0))
        moved = {name for name, v in net.state_dict().items() if not torch.equal(v, before[name])}
        assert all(name.endswith("quantiser.activation_range") for name in moved)
        assert bool(moved) == (scheme == "paper")


def test_no_norm_is_ever_in_training_mode() -> None:
    net = make_network(make_spec())
    assert net.train() is net
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 15  # stem, two a block, two shortcuts
    assert net.training
    assert net.backbone.training
    assert not any(norm.training for norm in norms)
    assert not net.eval().training


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", [("skip", "4", "8", "full"), ("skip", "2", "3"), ("4", "full")])
def test_an_images_result_does_not_depend_on_the_others(
    gate: str, options: tuple[str, ...]
) -> None:
    net = make_network(make_spec(options, gate=gate))
    images = make_images(net.spec, COUNT)
    together = net(images)
    assert len(together.decisions.unique()) > 1
    shuffle = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = net(images[shuffle])
    assert torch.equal(shuffled.decisions, together.decisions[shuffle])
    close(shuffled.logits, together.logits[shuffle])
    for index in range(COUNT):
        alone = net(images[index : index + 1])
        assert alone.decisions.tolist() == [together.decisions[index].tolist()]
        close(alone.logits[0], together.logits[index])
        close(alone.cost[0], together.cost[index], 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_of_an_output(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme, classes=1, channels=1, size=(9, 14)))
    for count in (1, 3):
        out = net(make_images(net.spec, count))
        assert isinstance(out, Output)
        assert out.logits.shape == (count, 1)
        assert out.decisions.shape == (count, len(net.blocks)) == (count, 5)
        assert out.decisions.dtype == torch.int64
        assert out.cost.shape == (count,)
        assert out.logits.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_skip_is_the_shortcuts_alone(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec, 3)
    out = net(images, decisions=net.forced("skip", 3))
    (_, first), *rest = net.backbone.named_blocks()
    x = first(net.backbone.stem(images))
    for _, block in rest:
        x = block.shortcut(x).relu()
    assert torch.equal(out.logits, net.backbone.head(x))
    assert out.cost.tolist() == [0.0] * 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [1, 4])
def test_all_full_is_the_plain_backbone(scheme: str, count: int) -> None:
    spec = make_spec(scheme=scheme)
    net, plain = make_network(spec), make_backbone(spec)
    images = make_images(spec, count)
    out = net(images, decisions=net.forced("full", count))
    torch.testing.assert_close(out.logits, plain(images), rtol=1e-5, atol=1e-5)
    assert out.cost.tolist() == [1.0] * count


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_static_network_has_no_gate(scheme: str) -> None:
    spec = make_spec(["full"], scheme=scheme)
    net, plain, images = make_network(spec), make_backbone(spec), make_images(spec, COUNT)
    assert net.gate is None
    assert net.profile.gate_macs == 0
    for mode in (None, mixing()):
        out = net(images, mixing=mode)
        torch.testing.assert_close(out.logits, plain(images), rtol=1e-5, atol=1e-5)
        assert out.decisions.tolist() == [[0] * 5] * COUNT
        assert out.cost.tolist() == [1.0] * COUNT
    eight = make_network(make_spec([8], scheme=scheme))
    out = eight(images)
    assert out.cost.tolist() == [1 / 16] * COUNT
    both = make_network(make_spec([8, "full"], scheme=scheme))
    close(out.logits, both(images, decisions=both.forced(8, COUNT)).logits, 1e-5)


def test_the_first_block_is_never_gated() -> None:
    spec = make_spec()
    net = make_network(spec)
    names = [name for name, _ in net.backbone.named_blocks()]
    assert [block.name for block in net.blocks] == names[1:]
    assert net(make_images(spec, 2)).decisions.shape[1] == len(names) - 1
    first = net.backbone.get_submodule(names[0])
    assert type(first.conv1) is nn.Conv2d
    assert type(first.bn1) is nn.BatchNorm2d
    for block in net.blocks:
        module = net.backbone.get_submodule(block.name)
        assert isinstance(module.conv1, FractionalConv2d)
        assert isinstance(module.bn2, FractionalBatchNorm2d)
        if module.downsample is not None:
            assert type(module.downsample[0]) is nn.Conv2d
    assert [block.gated for block in net.profile.blocks] == [False, True, True, True, True, True]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("options", ["paper", "low", ("full",)])
def test_the_plain_state_survives_by_name(scheme: str, options: str | tuple[str, ...]) -> None:
    spec = make_spec(options, scheme=scheme)
    plain = make_backbone(spec)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    net = DynamicNetwork(plain, spec)
    found = net.backbone.state_dict()
    assert state.keys() <= found.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
        assert torch.equal(net.state_dict()[f"backbone.{name}"], value)
    ours = {name.rsplit(".", 1)[1] for name in found.keys() - state.keys()}
    assert ours == {
        *("option_weight", "option_bias", "option_mean", "option_var"),
        *(("activation_range",) if scheme == "paper" else ("activation_step", "weight_step")),
    }
    gate = {name for name in net.state_dict() if not name.startswith("backbone.")}
    assert all(name.startswith("gate.") for name in gate)
    assert bool(gate) == (net.gate is not None)


def test_a_state_dict_is_the_whole_network() -> None:
    spec = make_spec()
    net, other = make_network(spec), build_network(spec).eval()
    images = make_images(spec)
    assert not torch.allclose(other(images).logits, net(images).logits)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images).logits, net(images).logits)
    assert torch.equal(other(images).decisions, net(images).decisions)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_deep_copy_is_a_network_of_its_own(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec)
    decisions = every_option(net, len(images))
    before = net(images, decisions=decisions).logits
    twin = copy.deepcopy(net)
    assert torch.equal(twin(images, decisions=decisions).logits, before)
    mine = {id(parameter) for parameter in net.parameters()}
    assert not mine & {id(parameter) for parameter in twin.parameters()}
    with torch.no_grad():
        for parameter in twin.backbone.layer2.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(twin(images, decisions=decisions).logits, before)
    assert torch.equal(net(images, decisions=decisions).logits, before)
    with torch.no_grad():
        for parameter in net.backbone.layer3.parameters():
            parameter.zero_()
    for block in twin.blocks:
        module = twin.backbone.get_submodule(block.name)
        assert block._block is module
        assert [conv for conv, _ in block._units] == [module.conv1, module.conv2]


def test_the_cost_of_an_output_is_the_accountings() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, COUNT)
    for out in (
        net(images),
        net(images, decisions=every_option(net, COUNT)),
        net(images, mixing=mixing(noise=2.0)),
        net(images, mixing=mixing(noise=2.0, dense=True)),
    ):
        report = account(out.decisions.numpy(), net.options, net.profile)
        np.testing.assert_allclose(out.cost.detach().numpy(), report.image_cp, rtol=1e-6)
        assert float(out.cost.detach().mean()) == pytest.approx(report.cp, rel=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_the_profile_counts_the_gates(gate: str) -> None:
    net = make_network(make_spec(gate=gate, size=(8, 12)))
    assert net.gate is not None
    # Width 5, 4 options; blocks see 16, 16, 32, 32, 64 channels.
    rest = 8 * 25 + 15 + 20 if gate == "recurrent" else 20
    channels = [16, 16, 32, 32, 64]
    assert [block.in_channels for block in net.blocks] == channels
    assert [b.gate_macs for b in net.profile.blocks] == [0, *(6 * c + rest for c in channels)]
    plain = make_network(make_spec(["full"], size=(8, 12))).profile
    assert net.profile.backbone_macs == plain.backbone_macs
    report = account(net.forced("full", 2).numpy(), net.options, net.profile)
    assert report.bitops_ratio == pytest.approx(
        1 + net.profile.gate_macs / net.profile.backbone_macs, rel=1e-12
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_channels_last_gives_the_same(scheme: str) -> None:
    net = make_network(make_spec(scheme=scheme))
    images = make_images(net.spec, COUNT)
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    flat = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(twin(flat).decisions, net(images).decisions)
    for decisions in (None, every_option(net, COUNT), net.forced("full", COUNT)):
        wanted = net(images, decisions=decisions).logits
        torch.testing.assert_close(
            twin(flat, decisions=decisions).logits, wanted, rtol=1e-5, atol=1e-5
        )

    def gradients(run: DynamicNetwork, x: Tensor) -> dict[str, Tensor]:
        out = run(x, mixing=mixing(sample_rate=1.0))
        (out.logits.square().mean() + out.cost.mean()).backward()
        return {name: p.grad for name, p in run.named_parameters() if p.grad is not None}

    found, wanted = gradients(twin, flat), gradients(net, images)
    assert found.keys() == wanted.keys()
    assert any(name.startswith("gate") for name in found)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dense", [False, True])
def test_bfloat16_autocast_trains(scheme: str, dense: bool) -> None:
    net = make_network(make_spec(scheme=scheme)).train()
    images = make_images(net.spec, COUNT)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images, mixing=mixing(noise=1.0, dense=dense, sample_rate=0.5))
    assert out.logits.dtype == torch.bfloat16
    # Costs are no activations: they keep float32, to the last decision.
    assert out.cost.dtype == torch.float32
    report = account(out.decisions.numpy(), net.options, net.profile)
    np.testing.assert_allclose(out.cost.detach().numpy(), report.image_cp, rtol=1e-6)
    (out.logits.float().square().mean() + out.cost.mean()).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if name.startswith("gate."))
    assert any(grad.any() for name, grad in grads.items() if "conv2.weight" in name)
    close(out.logits.float(), net.eval()(images, decisions=out.decisions).logits, 0.2)


def test_gate_logits_are_those_along_the_top_option() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, COUNT)
    logits = net.gate_logits(images)
    assert logits.shape == (COUNT, len(net.blocks), len(net.options))
    # Up to the first block everybody sees the same input.
    assert torch.equal(logits[:, 0].argmax(-1), net(images).decisions[:, 0])
    assert net.gate is not None
    with torch.no_grad():  # gates that always choose the top go the same way
        net.gate.out.bias += torch.tensor([0.0, 0.0, 0.0, 1e4])
    again = net.gate_logits(images)
    close(again[..., :3], logits[..., :3])
    assert (net(images).decisions == 3).all()
    again.sum().backward()
    assert all(p.grad is not None for p in net.gate.parameters())
    assert all(p.grad is None for p in net.backbone.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_a_budget_reaches_the_gates(gate: str) -> None:
    net = make_network(make_spec(gate=gate, budget_input=True, target=0.3))
    assert net.gate is not None
    assert net.gate.budget_embed is not None
    with torch.no_grad():
        net.gate.budget_embed.weight.normal_(0, 20)
    images = make_images(net.spec, COUNT)
    low, high = net(images, budget=0.01), net(images, budget=1.0)
    assert not torch.equal(low.decisions, high.decisions)
    mixed = net(images, budget=torch.tensor([0.01, 1.0] * 3))
    assert torch.equal(mixed.decisions[::2], low.decisions[::2])
    assert torch.equal(mixed.decisions[1::2], high.decisions[1::2])
    # Without one, it is what the network was trained for.
    assert torch.equal(net(images).decisions, net(images, budget=0.3).decisions)
    assert torch.equal(net.gate_logits(images), net.gate_logits(images, 0.3))
    assert not torch.equal(net.gate_logits(images), net.gate_logits(images, 0.9))
    with pytest.raises(ConfigError, match="out of range"):
        net(images, budget=0.0)


def test_budget_errors() -> None:
    spec = make_spec(budget_input=True)
    with pytest.raises(ConfigError, match="needs a budget"):
        make_network(spec)(make_images(spec))
    spec = make_spec(target=0.3)
    net = make_network(spec)
    net(make_images(spec))  # the target alone is no budget for a gate that takes none
    with pytest.raises(ConfigError, match="leave budget out"):
        net(make_images(spec), budget=0.3)


@pytest.mark.parametrize(
    "shape", [(8, 8), (3, 8, 8), (0, 3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (1, 2, 3, 8, 8)]
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    net = make_network(make_spec())
    with pytest.raises(ConfigError, match=r"do not fit: \(images, 3, height, width\)") as caught:
        net(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_decisions_that_do_not_fit_are_refused() -> None:
    net = make_network(make_spec())
    images = make_images(net.spec, 2)
    for shape in ((2, 4), (1, 5), (2,), (2, 5, 1), (3, 5)):
        with pytest.raises(ConfigError, match=r"do not fit: integers of shape \(2, 5\)"):
            net(images, decisions=torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"float32 do not fit"):
        net(images, decisions=torch.zeros(2, 5))
    for bad in (-1, 4):
        decisions = net.forced("skip", 2)
        decisions[1, 3] = bad
        with pytest.raises(ConfigError, match="option indices, 0 to 3"):
            net(images, decisions=decisions)
    narrow = every_option(net, 2).to(torch.uint8)
    assert torch.equal(net(images, decisions=narrow).decisions, every_option(net, 2))


def test_forced_decisions() -> None:
    net = make_network(make_spec())
    for index, label in enumerate(net.options.labels):
        assert net.forced(label, 3).tolist() == [[index] * 5] * 3
    assert net.forced(8, 1).tolist() == [[2] * 5]
    with pytest.raises(ConfigError, match="'16' is not in this set"):
        net.forced(16, 1)


def test_ties_go_to_the_first_option() -> None:
    net = make_network(make_spec(gate="feedforward"))
    assert net.gate is not None
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
    assert (net(make_images(net.spec)).decisions == 0).all()
    with torch.no_grad():
        for out in net.gate.out:
            out.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    for mode in (None, mixing(), mixing(dense=True)):
        assert (net(make_images(net.spec), mixing=mode).decisions == 1).all()


def test_a_network_is_built_from_a_spec() -> None:
    spec = make_spec("low", channels=1, classes=7, size=(9, 10))
    net = build_network(spec)
    assert net.spec == spec
    assert net.options.labels == spec.options
    assert net.backbone.fc.out_features == 7
    assert net.backbone.conv1.in_channels == 1
    with pytest.raises(ConfigError, match="resnet9"):
        build_network(make_spec(model="resnet9"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("split", [[8], [3, 5]])
def test_calibration_gives_finite_steps_and_eight_bits_close_to_full(
    scheme: str, split: list[int]
) -> None:
    spec = make_spec(scheme=scheme)
    net = DynamicNetwork(make_backbone(spec), spec).train()
    plain = {name: value.clone() for name, value in make_backbone(spec).state_dict().items()}
    images = make_images(spec, 8)
    net.calibrate(images.split(split))
    assert net.training  # as it was
    for module in net.modules():
        if isinstance(module, FractionalConv2d):
            for value in module.quantiser.state_dict().values():
                assert value.isfinite().all()
            if isinstance(module.quantiser, PaperQuantiser):
                low, high = module.quantiser.activation_range.tolist()
                assert 0 <= low < high  # what follows a ReLU
            else:
                for steps in (module.quantiser.activation_step, module.quantiser.weight_step):
                    assert (steps > 0).all()
                    assert (steps < 1).all()
    # The full option keeps what the backbone learned: weights, norms and statistics.
    found = net.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())

    net.eval()
    with torch.no_grad():
        full = net(images, decisions=net.forced("full", 8)).logits
        errors = {
            bits: float((net(images, decisions=net.forced(bits, 8)).logits - full).std())
            / float(full.std())
            for bits in (4, 8)
        }
    # Images of unlike brightness: statistics of parts of them are not those of all.
    assert errors[8] < (0.1 if len(split) == 1 else 0.3)
    assert errors[8] < (0.3 if len(split) == 1 else 0.7) * errors[4]


def test_calibration_estimates_the_statistics_that_each_option_sees() -> None:
    spec = make_spec(("skip", "2", "8", "full"))
    net = DynamicNetwork(make_backbone(spec), spec)
    images = make_images(spec, 8)
    net.calibrate([images])
    block = net.blocks[0]
    (conv, norm), _ = block._units
    (_, first), *_ = net.backbone.named_blocks()
    with torch.no_grad():
        x = first(net.backbone.stem(images))
        for row, bits in enumerate((2, 8)):
            z = conv.execute(x, net.options[row + 1])
            close(norm.option_mean[row], z.mean((0, 2, 3)), 1e-5)
            close(norm.option_var[row], z.var((0, 2, 3)), 1e-4)
            assert net.options[row + 1].bits == bits
    assert not torch.allclose(norm.option_var[0], norm.option_var[1], rtol=1e-3)


def test_calibration_sees_the_first_batch_alone_for_its_steps() -> None:
    spec = make_spec()
    images = make_images(spec, 8)
    one, two = (DynamicNetwork(make_backbone(spec), spec) for _ in range(2))
    one.calibrate([images])
    two.calibrate([images, images * 10])
    steps = [
        {n: v for n, v in net.state_dict().items() if n.endswith("_step")} for net in (one, two)
    ]
    assert steps[0].keys() == steps[1].keys()
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_pixels_become_normalised_images() -> None:
    spec = make_spec()
    image = spec.image.model_copy(update={"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    out = preprocess(pixels, image)
    assert out.shape == (2, 3, 4, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = (pixels / 255 - np.array(image.mean)) / np.array(image.std)
    np.testing.assert_allclose(out.numpy(), wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert torch.equal(preprocess(torch.from_numpy(pixels), image), out)
    for bad in (
        pixels[0],
        pixels.astype(np.float32),
        pixels[..., :1],
        pixels.transpose(0, 3, 1, 2),
    ):
        with pytest.raises(DataError, match=r"do not fit: uint8 \(images, height, width, 3\)"):
            preprocess(bad, image)


@pytest.mark.parametrize("gate", GATES)
def test_a_lean_moves_decisions_by_rank_at_evaluation_alone(gate: str) -> None:
    plain = make_network(make_spec(gate=gate))
    images = make_images(plain.spec, COUNT)

    def leaning(lean: float) -> DynamicNetwork:
        net = copy.deepcopy(plain)
        net.spec = net.spec.model_copy(update={"lean": lean})
        return net

    # At the first gated block the logits are the same whatever was chosen before.
    logits = plain.gate_logits(images)[:, 0]
    seen = set()
    for lean in (-4.0, -0.5, 0.0, 0.5, 4.0):
        rows = logits + lean * torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
        wanted = [row.index(max(row)) for row in rows.tolist()]
        assert leaning(lean)(images).decisions[:, 0].tolist() == wanted
        seen.add(tuple(wanted))
    assert len(seen) > 1
    assert (leaning(1e4)(images).decisions == 3).all()
    assert (leaning(-1e4)(images).decisions == 0).all()
    # Forced decisions, training and the gates' own logits know nothing of it.
    forced = every_option(plain, COUNT)
    assert torch.equal(leaning(1e4)(images, decisions=forced).decisions, forced)
    trained = leaning(1e4)(images, mixing=mixing(dense=True)).decisions
    assert torch.equal(trained, plain(images).decisions)
    assert torch.equal(leaning(1e4).gate_logits(images), plain.gate_logits(images))
    assert "_ranks" not in plain.state_dict()


@pytest.mark.parametrize("dense", [False, True])
def test_a_temperature_softens_the_gradient_and_no_decision(dense: bool) -> None:
    net = make_network(make_spec(gate="feedforward")).train()
    assert net.gate is not None
    images = make_images(net.spec, COUNT)
    bias = net.gate.out[0].bias

    def run(temperature: float) -> tuple[Output, Tensor]:
        net.zero_grad(set_to_none=True)
        out = net(images, mixing=mixing(dense=dense, temperature=temperature))
        out.cost.sum().backward()
        assert bias.grad is not None
        return out, bias.grad

    logits = net.gate_logits(images)[:, 0].detach()
    outs = []
    for temperature in (1.0, 3.0):
        out, grad = run(temperature)
        leaf = logits.clone().requires_grad_()
        costs = torch.tensor(net.options.costs)
        ((leaf / temperature).softmax(-1) @ costs).sum().div(len(net.blocks)).backward()
        assert leaf.grad is not None
        torch.testing.assert_close(grad, leaf.grad.sum(0), rtol=1e-4, atol=1e-7)
        outs.append(out)
    assert torch.equal(outs[0].decisions, outs[1].decisions)
    assert torch.equal(outs[0].logits, outs[1].logits)
