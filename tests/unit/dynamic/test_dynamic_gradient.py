"""The gates' gradient: sampled, it is on average that of exploration every option."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from tiny_networks import make_images, make_network, make_spec
from torch import Tensor

from fracskip.dynamic import DynamicNetwork, Exploration, FractionalBlock
from fracskip.dynamic.gradient import pass_gate_gradient
from fracskip.dynamic.passes import inner_per_image, reorder
from fracskip.dynamic.routing import OptionSample
from fracskip.gating import first_minimum, straight_through

COUNT, TRIES = 4, 2
SETS = [("skip", "4", "8", "full"), ("4", "8", "full"), ("skip", "full"), ("skip", "8")]


def every_sample(options: int, can_skip: bool) -> Iterator[OptionSample]:
    """All equally likely choices of rows and of the option they try."""
    executed = range(1 if can_skip else 0, options)
    for rows in itertools.combinations(range(COUNT), TRIES):
        for option in executed:
            yield OptionSample(torch.tensor(rows), option, len(executed) * COUNT / TRIES)


def block_parameters(net: DynamicNetwork, block: FractionalBlock) -> dict[str, Tensor]:
    module = net.backbone.get_submodule(block.name)
    return dict(module.named_parameters())


def run_block(
    net: DynamicNetwork,
    block: FractionalBlock,
    x: Tensor,
    logits: Tensor,
    sample: OptionSample | None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Output and gradients (by logits, input, parameters) of a nonlinear loss."""
    x, logits = x.clone().requires_grad_(), logits.clone().requires_grad_()
    for parameter in net.parameters():
        parameter.grad = None
    choice = first_minimum(-logits)
    weights = straight_through(logits.softmax(-1), choice)
    if sample is None:
        y = block.mix(x, weights)
    else:
        y = block.route_with_gradient(x, weights, choice, sample)
    scale = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    (20 * (y * scale + 0.1 * y.square()).mean((1, 2, 3))).sum().backward()
    assert x.grad is not None
    assert logits.grad is not None
    grads = {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in block_parameters(net, block).items()
    }
    return y.detach(), logits.grad, x.grad, grads


def group_shares(net: DynamicNetwork, choice: Tensor) -> Tensor:
    """Share of the images in each quantised option's group, (slots, 1).

    LSQ scales a step's gradient by one over the root of the number of values it quantises; routing
    counts those of a group, exploration those of the batch.
    """
    counts = torch.bincount(choice, minlength=len(net.options))
    quantised = [index for index, option in enumerate(net.options) if option.is_quantised]
    return (counts[quantised] / len(choice))[:, None]


@pytest.mark.parametrize("options", SETS, ids="-".join)
@pytest.mark.parametrize("scheme", ["lsq", "paper"])
@pytest.mark.parametrize("index", [0, 1], ids=["identity", "strided"])
def test_the_sampled_gradient_is_unbiased(
    options: tuple[str, ...], scheme: str, index: int
) -> None:
    # Evaluation mode: the paper's running ranges stand still, so that passes can be compared.
    net = make_network(make_spec(options, scheme=scheme))
    block = net.blocks[index]
    torch.manual_seed(index)
    x = torch.rand(COUNT, block.in_channels, 6, 6)
    logits = torch.randn(COUNT, len(options))
    y, by_logits, by_x, by_weights = run_block(net, block, x, logits, None)
    shares = group_shares(net, first_minimum(-logits))
    total, passes, estimates = torch.zeros_like(by_logits), 0, []
    for sample in every_sample(len(options), net.options.can_skip):
        found = run_block(net, block, x, logits, sample)
        torch.testing.assert_close(found[0], y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[2], by_x, rtol=1e-4, atol=1e-5)
        assert found[3].keys() == by_weights.keys()
        for name, grad in found[3].items():
            if name.endswith("activation_step"):
                grad = grad * shares.sqrt()
            torch.testing.assert_close(grad, by_weights[name], rtol=1e-4, atol=2e-5)
        estimates.append(found[1])
        total += found[1]
        passes += 1
    mean = total / passes
    assert by_logits.abs().max() > 1e-3
    torch.testing.assert_close(mean, by_logits, rtol=1e-4, atol=1e-5)
    # One estimate alone is not the gradient: the average is what is tested.
    assert any(not torch.allclose(one, by_logits, rtol=1e-2, atol=1e-4) for one in estimates)


@pytest.mark.parametrize("gate", ["recurrent", "feedforward"])
def test_a_networks_gates_learn_the_same_on_average(
    gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_network(make_spec(("skip", "4", "full"), model="resnet8", gate=gate)).train()
    assert net.gate is not None
    images = make_images(net.spec, COUNT)

    choices: list[Tensor] = []

    def gradients(dense: bool) -> dict[str, Tensor]:
        net.zero_grad(set_to_none=True)
        out = net(images, exploration=Exploration(torch.Generator(), dense=dense))
        loss = out.logits.square().mean() + 0.3 * out.cost.square().sum()
        loss.backward()
        choices[:] = out.decisions.T
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    dense = gradients(dense=True)
    sampled = []
    for sample in every_sample(3, can_skip=True):
        monkeypatch.setattr(Exploration, "sample", lambda *_, sample=sample: sample)
        sampled.append(gradients(dense=False))
    for name, wanted in dense.items():
        found = [one[name] for one in sampled if name in one]
        if not found:
            assert not wanted.any(), name  # not chosen: dense exploration gives it zeros
        elif name.startswith("gate."):
            scale = float(wanted.abs().max())
            assert scale > 0
            mean = torch.stack(found).mean(0)
            torch.testing.assert_close(mean, wanted, rtol=1e-3, atol=1e-5 * max(scale, 1))
        else:
            for one in found:  # the weights' own gradient is exact, each time
                if name.endswith("activation_step"):
                    index = [name.startswith(f"backbone.{b.name}") for b in net.blocks].index(True)
                    one = one * group_shares(net, choices[index]).sqrt()
                torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


def test_trials_are_drawn_evenly() -> None:
    net = make_network(make_spec(("skip", "4", "full")))
    exploration = Exploration(torch.Generator().manual_seed(0), sample_rate=0.5)
    rows, options = torch.zeros(COUNT), torch.zeros(3)
    for _ in range(600):
        sample = exploration.sample(COUNT, net.options, torch.device("cpu"))
        assert len(sample.rows.unique()) == len(sample.rows) == 2
        assert sample.weight == 2 * COUNT / 2
        rows[sample.rows] += 1
        options[sample.option] += 1
    torch.testing.assert_close(rows / 600, torch.full((COUNT,), 0.5), rtol=0, atol=0.08)
    torch.testing.assert_close(options / 600, torch.tensor([0.0, 0.5, 0.5]), rtol=0, atol=0.08)


@pytest.mark.parametrize(
    ("options", "rate", "count", "tries", "weight"),
    [
        (("skip", "4", "8", "full"), 0.25, 8, 2, 12.0),
        (("4", "8", "full"), 0.25, 8, 2, 12.0),
        (("skip", "full"), 1.0, 5, 5, 1.0),
        (("skip", "full"), 0.01, 5, 1, 5.0),
        (("skip", "8", "full"), 0.25, 1, 1, 2.0),
    ],
)
def test_a_trials_weight_is_the_inverse_of_its_probability(
    options: tuple[str, ...], rate: float, count: int, tries: int, weight: float
) -> None:
    net = make_network(make_spec(options))
    exploration = Exploration(torch.Generator().manual_seed(0), sample_rate=rate)
    drawn = [exploration.sample(count, net.options, torch.device("cpu")) for _ in range(40)]
    assert {len(sample.rows) for sample in drawn} == {tries}
    assert {sample.weight for sample in drawn} == {weight}
    lowest = 1 if options[0] == "skip" else 0
    assert {sample.option for sample in drawn} == set(range(lowest, len(options)))


def test_the_same_generator_gives_the_same_pass() -> None:
    net = make_network(make_spec()).train()
    outs = [
        net(
            make_images(net.spec),
            exploration=Exploration(
                torch.Generator().manual_seed(seed), noise=2.0, sample_rate=0.5
            ),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(outs[0].decisions, outs[1].decisions)
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert not torch.equal(outs[0].decisions, outs[2].decisions)


@pytest.mark.parametrize("dense", [False, True])
def test_the_cost_carries_the_softmaxs_gradient(dense: bool) -> None:
    net = make_network(make_spec(gate="feedforward")).train()
    assert net.gate is not None
    images = make_images(net.spec)
    exploration = Exploration(torch.Generator().manual_seed(0), dense=dense)
    net(images, exploration=exploration).cost.sum().backward()
    grads = [p.grad.clone() for p in net.gate.parameters() if p.grad is not None]
    assert all(p.grad is None for p in net.backbone.parameters())
    # By hand: the expected cost under the softmax, along the path that was taken.
    net.zero_grad(set_to_none=True)
    out = net(images)
    costs = torch.tensor(net.options.costs)
    x = net.begin(images)
    state = net.gate.start(len(images), None, x)
    total = torch.zeros(())
    for index, block in enumerate(net.blocks):
        logits = -net.gate(index, x.detach().mean((2, 3)), state)
        total = total + (logits.softmax(-1) @ costs).sum() / len(net.blocks)
        x = block.route(x, out.decisions[:, index])
    total.backward()
    wanted = [p.grad for p in net.gate.parameters() if p.grad is not None]
    assert len(grads) == len(wanted) == len(list(net.gate.parameters()))
    for found, want in zip(grads, wanted, strict=True):
        assert (want != 0).any()
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dense", [False, True])
def test_anchors_execute_their_option_and_teach_the_gates_nothing(dense: bool) -> None:
    net = make_network(make_spec()).train()
    assert net.gate is not None
    images = make_images(net.spec)

    def run(loss_of: slice, uniform: int) -> float:
        net.zero_grad(set_to_none=True)
        exploration = Exploration(
            torch.Generator().manual_seed(0),
            noise=1.0,
            dense=dense,
            sample_rate=1.0,
            uniform=uniform,
            uniform_option=1,
        )
        out = net(images, exploration=exploration)
        assert (out.decisions[:uniform] == 1).all()
        assert len(out.decisions[uniform:].unique()) > 1
        (out.logits[loss_of].square().sum() + 5 * out.cost[loss_of].sum()).backward()
        weights = [block_parameters(net, block)["conv1.weight"] for block in net.blocks]
        assert any(w.grad is not None and (w.grad != 0).any() for w in weights)
        return max(float(p.grad.abs().max()) for p in net.gate.parameters() if p.grad is not None)

    assert run(slice(0, 2), uniform=0) > 0
    assert run(slice(0, 2), uniform=2) == 0
    assert run(slice(2, None), uniform=2) > 0


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_of_anchors_alone(dense: bool) -> None:
    net = make_network(make_spec()).train()
    images = make_images(net.spec)
    exploration = Exploration(
        torch.Generator().manual_seed(0), dense=dense, uniform=len(images), uniform_option=3
    )
    out = net(images, exploration=exploration)
    assert (out.decisions == 3).all()
    forced = net(images, decisions=net.forced("full", len(images)))
    torch.testing.assert_close(out.logits, forced.logits, rtol=1e-4, atol=1e-4)
    (out.logits.sum() + out.cost.sum()).backward()
    assert net.gate is not None
    assert all(p.grad is None or not p.grad.any() for p in net.gate.parameters())


def test_steering_is_no_business_of_the_backbone() -> None:
    # With the classifier's gradient cut, nothing reaches the weights through the gates' features.
    net = make_network(make_spec()).train()
    out = net(make_images(net.spec), exploration=Exploration(torch.Generator(), dense=True))
    out.cost.sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())


def test_pass_gate_gradient_by_hand() -> None:
    y = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1).requires_grad_()
    weights = torch.eye(3).requires_grad_()
    skipped = torch.tensor([5.0, 5.0, 5.0]).reshape(3, 1, 1, 1)
    tried = torch.tensor([[[[7.0]]], [[[9.0]]]])
    out = pass_gate_gradient(y, weights, skipped, tried, torch.tensor([2, 0]), 1, 4.0)
    assert torch.equal(out, y)
    g = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1)
    out.backward(g)
    assert y.grad is not None
    assert torch.equal(y.grad, g)
    assert weights.grad is not None
    # g · (y_k - y), four times where it was tried, zero where it was not.
    assert weights.grad.tolist() == [[4, 4 * 8, 0], [30, 0, 0], [200, 4 * 400, 0]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inner_products_are_each_images_own(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    a = torch.randn(3, 4, 5, 6).to(dtype).contiguous(memory_format=layout)
    for b in (torch.randn(3, 4, 5, 6).to(dtype), torch.ones(()).to(dtype).expand(3, 4, 5, 6)):
        found = inner_per_image(a, b)
        assert found.dtype == torch.float32
        wanted = (a.double() * b.double()).sum((1, 2, 3)).float()
        tolerance = 1e-5 if dtype == torch.float32 else 0.3
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_reordering_is_a_permutation_there_and_back() -> None:
    x = torch.randn(5, 2, 3, 3, requires_grad=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    y = reorder(x, order, torch.argsort(order))
    assert torch.equal(y, x[order])
    g = torch.randn_like(y)
    y.backward(g)
    assert x.grad is not None
    assert torch.equal(x.grad[order], g)
