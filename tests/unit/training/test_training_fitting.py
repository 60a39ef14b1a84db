"""Converted networks are trained on any loader, and meet the budgets that are asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.support.residual_networks import Bottleneck, Inverted, Network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fracskip
from fracskip.config import GateConfig, QuantConfig
from fracskip.dynamic import DynamicNetwork, convert
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation import evaluate, sweep
from fracskip.training import fit
from fracskip.training import standard as module
from fracskip.training.fitting import make_recipe
from fracskip.training.loaders import read_validation

CLASSES = 5
SIZE = (12, 12)
Data = tuple[Tensor, Tensor]


def draw_images(count: int, seed: int) -> Data:
    """Squares of five sizes in noise: some can't be told."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.7 * torch.randn(count, 3, *SIZE, generator=draw)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 1 : 2 + 2 * label, 1 : 2 + 2 * label] += 1
    return images, labels


def loader(count: int, seed: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*draw_images(count, seed)), batch_size=32, **settings)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    net = Network(Inverted, last=3)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    net.train()
    for epoch in range(6):
        for images, labels in loader(480, epoch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def fitted(trained: nn.Module) -> tuple[DynamicNetwork, dict[str, Any]]:
    net = convert(trained, "low", example_input=torch.zeros(1, 3, *SIZE))
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUDGETS", 5)
        found = fit(
            net,
            loader(320, 0, shuffle=True),
            loader(96, 1),
            budget=(0.008, 0.06),
            epochs=(5, 2, 1),
            members=1,
        )
    return net, found


def test_every_budget_is_met(fitted: tuple[DynamicNetwork, dict[str, Any]]) -> None:
    """One block can't be skipped; where decisions jump over a budget, it is met less closely."""
    net, found = fitted
    assert net.budgets is not None
    assert 0.008 <= net.budgets[0] < net.budgets[1] < 0.061
    assert found["operating_points"] == net.operating_points.model_dump(mode="json")
    asked = [budget for budget, _ in net.operating_points.multiplier_curve]
    points = sweep(net, loader(96, 1), asked)["points"]
    assert len(points) >= 2
    for point in points:
        assert point["cp"] == pytest.approx(point["budget"], rel=0.25)
    assert [point["cp"] for point in points] == sorted(point["cp"] for point in points)
    assert net(draw_images(4, 3)[0], budget=asked[0]).cost.shape == (4,)
    with pytest.raises(ConfigError, match="out of this network's reach"):
        net(draw_images(4, 3)[0], budget=0.5)


def test_it_learns_what_the_network_knew(
    trained: nn.Module, fitted: tuple[DynamicNetwork, dict[str, Any]]
) -> None:
    net, _ = fitted
    images, labels = draw_images(320, 2)
    with torch.no_grad():
        before = float((trained(images).argmax(1) == labels).float().mean())
    assert net.budgets is not None
    record = evaluate(net, loader(320, 2), budget=net.budgets[1])
    assert record["images"] == 320
    assert record["data"] == {"name": "batches", "split": "given"}
    assert before > 0.6
    assert record["accuracy"] > before - 0.25
    at = {point["option"]: point["accuracy"] for point in record["static"]}
    assert at["4"] > before - 0.1
    assert record["examples"] == {"cheapest": [], "dearest": []}
    assert [row["name"] for row in record["classes"]] == [str(index) for index in range(5)]


def test_epochs_are_reported(fitted: tuple[DynamicNetwork, dict[str, Any]]) -> None:
    _, found = fitted
    places = [(event["stage"], event["epoch"]) for event in found["epochs"]]
    assert places == (
        [("supernet", n) for n in range(1, 6)]
        + [("gates", n) for n in range(1, 3)]
        + [("joint", n) for n in range(1, 2)]
    )
    for event in found["epochs"]:
        assert event["loss"] > 0
        assert 0 <= event["validation"]["accuracy"] <= 1
    assert found["epochs"][4]["loss"] < found["epochs"][0]["loss"]


def test_one_budget_is_a_target(trained: nn.Module) -> None:
    torch.manual_seed(0)
    net = convert(
        trained, ["skip", 4, 8], gate=GateConfig(width=4, output="sensitivity", block_bias=True),
        quant=QuantConfig(), example_input=torch.zeros(1, 3, *SIZE),
    )  # fmt: skip
    seen: list[str] = []
    fit(
        net, loader(96, 0), loader(96, 1), budget=0.03, epochs=(1, 1, 1),
        on_epoch=lambda event: seen.append(event["stage"]),
    )  # fmt: skip
    assert seen == ["supernet", "gates", "joint"]
    points = net.operating_points
    assert (points.target, points.multiplier_curve, points.cascade) == (0.03, (), ())
    assert not net.training
    cp = evaluate(net, loader(96, 1), static=False)["cp"]
    assert cp == pytest.approx(0.03, rel=0.4)


def test_the_same_seed_and_loaders_give_the_same_network(trained: nn.Module) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        net = convert(trained, ["skip", 4, 8], example_input=torch.zeros(1, 3, *SIZE))
        fit(net, loader(96, 0), loader(96, 1), 0.03, epochs=(1, 1, 1), seed=7)
        found.append(copy.deepcopy(net.state_dict()))
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.filterwarnings("ignore:the target of")
@pytest.mark.parametrize(
    ("amp", "tolerance"), [("off", 0.05), ("bf16", 0.1)], ids=["channels_last", "bfloat16"]
)
def test_a_traced_network_trains_in_every_layout_and_precision(
    trained: nn.Module, amp: str, tolerance: float
) -> None:
    """A first epoch's losses are those of contiguous images in float32."""

    def losses(amp: str, layout: torch.memory_format) -> list[float]:
        plain = copy.deepcopy(trained)
        plain.drop.p = 0.0  # another precision draws other masks
        torch.manual_seed(0)  # of the gates' first weights
        net = convert(plain, [6, 8], example_input=torch.zeros(1, 3, *SIZE))
        recipe = make_recipe(net, 0.05, (1, 1, 1), 1, 3e-3, 0, 32)
        runtime = recipe.runtime.model_copy(
            update={"amp": amp, "channels_last": layout is torch.channels_last}
        )
        batches = [(x.to(memory_format=layout), y) for x, y in loader(64, 0)]
        found = fit(
            net, batches, loader(32, 1), recipe=recipe.model_copy(update={"runtime": runtime})
        )
        weight = net.get_parameter("backbone.blocks.0.expand.0.weight")
        assert weight.dtype is torch.float32
        return [event["loss"] for event in found["epochs"] if event["stage"] != "gates"]

    wanted = losses("off", torch.contiguous_format)
    # Decisions that flip move the last stage by more than sums in another order do.
    assert losses(amp, torch.channels_last) == pytest.approx(wanted, rel=tolerance, abs=0.03)


def test_the_teacher_is_the_network_as_it_was(trained: nn.Module) -> None:
    net = convert(trained, "low", example_input=torch.zeros(1, 3, *SIZE))
    images, _ = draw_images(8, 0)
    with torch.no_grad():
        torch.testing.assert_close(net.plain()(images), trained(images))
    assert sum(p.numel() for p in net.plain().parameters()) < 3 * sum(
        p.numel() for p in trained.parameters()
    )


def test_no_more_is_held_than_is_asked_for(trained: nn.Module) -> None:
    net = convert(trained, "low", example_input=torch.zeros(1, 3, *SIZE))
    held = read_validation(loader(96, 0), 40, net.spec)
    images, labels = draw_images(96, 0)
    assert len(held) == 40
    assert torch.equal(torch.from_numpy(held.images), images[:40])
    assert held.labels.tolist() == labels[:40].tolist()


def test_budgets_become_a_recipe(trained: nn.Module) -> None:
    net = convert(trained, "low", example_input=torch.zeros(1, 3, *SIZE))
    recipe = make_recipe(net, (0.005, 0.05), (2, 3, 4), 2, 1e-3, 9, 32)
    assert (recipe.supernet.epochs, recipe.gates.epochs, recipe.joint.epochs) == (2, 3, 4)
    assert recipe.joint.budgets[0] == pytest.approx(0.005)
    assert recipe.joint.budgets[-1] == pytest.approx(0.05)
    assert (recipe.joint.members, recipe.seed, recipe.batch_size) == (2, 9, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.0}, r"budget 0.0 is out of range: give a share in \(0, 1\]"),
        ({"budget": (0.5, 0.1)}, r"budget \(0.5, 0.1\) is out of range"),
        ({"train": iter([])}, "an iterator can be gone through once only"),
        ({"train": []}, "needs to know how many batches"),
        ({"validation": []}, "validation loader gave no images"),
        ({"validation": [(torch.zeros(2, 3, 12, 12), torch.tensor([0, 9]))]}, "fit 5 classes"),
        ({"validation": [(torch.zeros(2, 3, 12, 12), torch.zeros(2))]}, "one class number each"),
        ({"options": [8]}, "a network with one option has no gates"),
        ({"gate": GateConfig()}, "gates whose output is 'sensitivity', this one's is a 'logit'"),
        ({"quant": QuantConfig(scheme="paper")}, "needs quant.scheme 'lsq'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(change: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "options": "low",
        "example_input": torch.zeros(1, 3, *SIZE),
        **{key: change[key] for key in ("options", "gate", "quant") if key in change},
    }
    net = convert(Network(Bottleneck).eval(), settings.pop("options"), **settings)
    given = {"train": loader(32, 0), "validation": loader(32, 1), "budget": (0.01, 0.05)}
    given.update({key: value for key, value in change.items() if key in given})
    with pytest.raises((ConfigError, DataError), match=message):
        fit(net, **given)


def test_the_verbs_are_at_hand() -> None:
    assert (fracskip.fit, fracskip.sweep) == (fit, sweep)
