from __future__ import annotations

import math

import pytest
import torch

from fracskip.config import GateConfig
from fracskip.errors import ConfigError
from fracskip.gating import FeedForwardGate, Gate, GateState, RecurrentGate, create_gate

CHANNELS = [16, 16, 32, 64]
KINDS = ["recurrent", "feedforward"]


def make(kind: str, budget_input: bool = False, width: int = 6, options: int = 3) -> Gate:
    torch.manual_seed(0)
    config = GateConfig(kind=kind, width=width, budget_input=budget_input)
    return create_gate(config, CHANNELS, options)


def pooled(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, channels, generator=generator) for channels in CHANNELS]


def scores_over(gate: Gate, inputs: list[torch.Tensor], budget: float | torch.Tensor | None = None):
    state = gate.start(len(inputs[0]), budget, inputs[0])
    return torch.stack([gate(block, x, state) for block, x in enumerate(inputs)], 1)


def test_a_recipe_names_the_kind() -> None:
    assert isinstance(make("recurrent"), RecurrentGate)
    assert isinstance(make("feedforward"), FeedForwardGate)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("options", [2, 7])
def test_shapes(kind: str, count: int, options: int) -> None:
    logits = scores_over(make(kind, options=options), pooled(count))
    assert logits.shape == (count, len(CHANNELS), options)
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_state_runs_over_the_blocks_of_a_recurrent_gate_alone(kind: str) -> None:
    gate, inputs = make(kind), pooled(2)
    changed = [inputs[0] + 1, *inputs[1:]]
    before, after = scores_over(gate, inputs), scores_over(gate, changed)
    same = [torch.equal(before[:, block], after[:, block]) for block in range(len(CHANNELS))]
    assert same == [False, kind == "feedforward", kind == "feedforward", kind == "feedforward"]
    # A batch begins anew: nothing is left of the last one.
    assert torch.equal(scores_over(gate, inputs), before)


def test_a_recurrent_state_starts_at_zero_and_is_kept_in_the_state() -> None:
    gate = make("recurrent")
    assert isinstance(gate, RecurrentGate)
    x = pooled(3)[0]
    state = gate.start(3, None, x)
    assert state == GateState()
    scores = gate(0, x, state)
    zeros = torch.zeros(3, 6)
    hidden, cell = gate.lstm(gate.embed[0](x), (zeros, zeros))
    assert torch.equal(scores, -gate.out(hidden))
    assert state.hidden is not None
    assert state.cell is not None
    assert torch.equal(state.hidden, hidden)
    assert torch.equal(state.cell, cell)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget_input", [False, True])
def test_an_images_logits_are_its_own(kind: str, budget_input: bool) -> None:
    gate, inputs = make(kind, budget_input), pooled(5)
    budget = torch.tensor([0.01, 0.05, 0.1, 0.5, 1.0]) if budget_input else None
    together = scores_over(gate, inputs, budget)
    for image in range(5):
        own = None if budget is None else float(budget[image])
        alone = scores_over(gate, [x[image : image + 1] for x in inputs], own)
        torch.testing.assert_close(alone[0], together[image], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_superfluous_budget_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="takes none: leave budget out"):
        make(kind).start(2, 0.5, pooled(2)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_budget_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"needs a budget.*\(0, 1\]"):
        make(kind, budget_input=True).start(2, None, pooled(2)[0])


@pytest.mark.parametrize(
    "budget", [0, 0.0, -0.1, 1.001, 5, math.nan, math.inf, [0.5, 0.0], [0.5, math.nan]]
)
def test_a_budget_out_of_range_is_refused(budget: float | list[float]) -> None:
    value = torch.tensor(budget) if isinstance(budget, list) else budget
    with pytest.raises(ConfigError, match=r"out of range.*\(0, 1\]"):
        make("recurrent", budget_input=True).start(2, value, pooled(2)[0])


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)])
def test_budgets_for_another_number_of_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"does not fit.*2 images"):
        make("recurrent", budget_input=True).start(2, torch.full(shape, 0.5), pooled(2)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_changes_the_logits(kind: str) -> None:
    gate, inputs = make(kind, budget_input=True), pooled(3)
    low, high = scores_over(gate, inputs, 0.01), scores_over(gate, inputs, 1.0)
    assert (low != high).any(dim=2).all()  # of every image, at every block
    for one_for_all in (0.01, torch.tensor(0.01), torch.tensor([0.01]), torch.full((3,), 0.01)):
        assert torch.equal(scores_over(gate, inputs, one_for_all), low)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_may_have_a_budget_of_its_own(kind: str) -> None:
    gate, inputs = make(kind, budget_input=True), pooled(3)
    low, high = scores_over(gate, inputs, 0.02), scores_over(gate, inputs, 0.6)
    mixed = scores_over(gate, inputs, torch.tensor([0.02, 0.6, 0.02]))
    torch.testing.assert_close(mixed, torch.stack([low[0], high[1], low[2]]))


def test_a_budgets_logarithm_is_encoded() -> None:
    # One decade is two thirds, 1 is at the top: log10(b) / 1.5 + 1.
    gate = make("feedforward", budget_input=True)
    assert gate.budget_embed is not None
    budgets = torch.tensor([1.0, 10**-1.5, 10**-3.0])
    state = gate.start(3, budgets, budgets)
    wanted = gate.budget_embed(torch.tensor([[1.0], [0.0], [-1.0]]))
    assert state.budget is not None
    torch.testing.assert_close(state.budget, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_a_hand_count(kind: str) -> None:
    gate = make(kind, width=10, options=4)
    # Pooling (one MAC a channel), features (C x 10), then:
    # recurrent: 4 gates x (10 x 10 input + 10 x 10 hidden), 3 products x 10, output 10 x 4;
    # feed-forward: output 10 x 4.
    rest = 800 + 30 + 40 if kind == "recurrent" else 40
    assert [gate.macs(block) for block in range(4)] == [
        16 + 160 + rest,
        16 + 160 + rest,
        32 + 320 + rest,
        64 + 640 + rest,
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget_input", [False, True])
def test_every_parameter_learns(kind: str, budget_input: bool) -> None:
    gate = make(kind, budget_input)
    budget = torch.tensor([0.1, 0.9]) if budget_input else None
    scores_over(gate, pooled(2), budget).square().sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    assert ("budget_embed.weight" in dict(gate.named_parameters())) == budget_input


def test_fresh_features_are_of_order_one() -> None:
    torch.manual_seed(0)
    gate = create_gate(GateConfig(width=64), [256], 4)
    features = gate.features(0, torch.randn(200, 256), GateState())
    assert float(features.detach().std()) == pytest.approx(1.0, abs=0.1)
    assert float(gate.embed[0].bias.detach().abs().max()) == 0.0


def test_a_gate_of_no_kind_decides_nothing() -> None:
    gate = Gate(CHANNELS, 3, 4, budget_input=False)
    with pytest.raises(NotImplementedError):
        gate(0, torch.zeros(1, 16), GateState())
    with pytest.raises(NotImplementedError):
        gate.macs(0)


# -- what a gate starts from ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
@pytest.mark.parametrize("budget_input", [False, True])
def test_a_standardised_gate_tells_images_apart(kind: str, budget_input: bool) -> None:
    torch.manual_seed(0)
    own = kind == "recurrent"
    config = GateConfig(kind=kind, width=6, budget_input=budget_input, block_bias=own)
    gate = create_gate(config, [4, 8, 8], 3)
    # Pooled features differ little between images, and not at all in one channel.
    pooled = [0.4 + 0.02 * torch.randn(200, channels) for channels in (4, 8, 8)]
    pooled[0][:, 2] = 0.3
    gate.standardise(pooled)
    state = gate.start(200, 1.0 if budget_input else None, pooled[0])
    with torch.inference_mode():
        logits = -torch.stack([gate(block, seen, state) for block, seen in enumerate(pooled)])
    torch.testing.assert_close(logits.mean(1), torch.zeros(3, 3), atol=1e-4, rtol=0)
    deviation = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    assert deviation.item() == pytest.approx(1, abs=1e-3)
    gate.prefer(torch.tensor([0.2, 0.7, 0.1]))
    state = gate.start(200, 1.0 if budget_input else None, pooled[0])
    with torch.inference_mode():
        moved = -torch.stack([gate(block, seen, state) for block, seen in enumerate(pooled)])
    wanted = torch.tensor([0.2, 0.7, 0.1]).log().expand(3, 200, 3)
    torch.testing.assert_close(moved - logits, wanted, atol=1e-4, rtol=0)


def test_a_block_bias_is_added_to_its_blocks_logits_alone() -> None:
    torch.manual_seed(0)
    gate = create_gate(GateConfig(width=5, block_bias=True), [4, 4], 3)
    plain = create_gate(GateConfig(width=5), [4, 4], 3)
    plain.load_state_dict({k: v for k, v in gate.state_dict().items() if k != "block_bias"})
    assert isinstance(gate.block_bias, torch.nn.Parameter)
    bias = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]])
    with torch.no_grad():
        gate.block_bias.copy_(bias)
    pooled = torch.rand(7, 4)
    one, other = gate.start(7, None, pooled), plain.start(7, None, pooled)
    for block in range(2):
        difference = plain(block, pooled, other) - gate(block, pooled, one)
        torch.testing.assert_close(difference, bias[block].expand(7, 3), atol=1e-5, rtol=0)
    assert gate.macs(1) == plain.macs(1)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_decisions_follow_no_image_and_no_multiplier(kind: str) -> None:
    config = GateConfig(kind=kind, width=6, block_bias=kind == "recurrent")
    torch.manual_seed(3)
    gate = create_gate(config, CHANNELS, 3)
    inputs = pooled(50)
    path = [2, 0, 1, 0]
    gate.fix(path)
    scores = scores_over(gate, inputs)
    for multiplier in (-64.0, 0.0, 64.0):
        chosen = (scores + multiplier * torch.linspace(0, 1, 3)).argmin(-1)
        assert chosen.tolist() == [path] * 50


def test_decisions_cannot_be_fixed_where_all_blocks_share_their_bias() -> None:
    with pytest.raises(ConfigError, match=r"set gate\.block_bias to true"):
        make("recurrent").fix([0, 0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_embeddings_are_exact_in_bfloat16_and_say_the_same(kind: str) -> None:
    gate, inputs = make(kind), pooled(8)
    before = scores_over(gate, inputs)
    assert any(not torch.equal(each.weight, each.weight.bfloat16().float()) for each in gate.embed)
    gate.round_embeddings()
    assert all(torch.equal(each.weight, each.weight.bfloat16().float()) for each in gate.embed)
    torch.testing.assert_close(scores_over(gate, inputs), before, rtol=0, atol=5e-3)


# -- gates that give sensitivities ----------------------------------------------------------------


def sensitive(kind: str, options: int = 3) -> Gate:
    torch.manual_seed(0)
    return create_gate(GateConfig(kind=kind, width=6, output="sensitivity"), CHANNELS, options)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_sensitivities_in_hundredths_of_a_nat(kind: str) -> None:
    gate, inputs = sensitive(kind), pooled(4)
    state, other = gate.start(4, None, inputs[0]), gate.start(4, None, inputs[0])
    for block, x in enumerate(inputs):
        nats = 10 * gate.head_output(block, x, other).clamp(max=0).exp()
        torch.testing.assert_close(gate(block, x, state), 100 * nats)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_gates_give_a_little_sensitivity_and_none_to_the_dearest_option(kind: str) -> None:
    gate, inputs = sensitive(kind), pooled(200)
    gate.standardise(inputs)
    found = scores_over(gate, inputs).detach()
    assert found[..., :-1].log().mean().exp() == pytest.approx(1000 * math.exp(-6), rel=0.01)
    assert found[..., -1].max() < 0.01
    assert found[..., 0].std() > 0.5


def test_fixed_sensitivities_outweigh_every_multiplier() -> None:
    config = GateConfig(kind="recurrent", output="sensitivity", block_bias=True)
    gate, inputs = create_gate(config, CHANNELS, 3), pooled(5)
    gate.fix([2, 0, 1, 0])
    scores = scores_over(gate, inputs)
    costs = torch.tensor([0.0, 0.25, 1.0])
    for multiplier in (-900.0, 0.0, 900.0):
        assert (scores + multiplier * costs).argmin(-1).tolist() == [[2, 0, 1, 0]] * 5
