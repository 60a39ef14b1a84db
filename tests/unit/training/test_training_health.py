"""Trainings that go wrong: what is said of them, and what is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fracskip.checkpoint import load, read_package, save
from fracskip.config import ImageConfig, JointStage, Recipe, recipe_from_dict
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork, convert
from fracskip.errors import DataError, DivergedError
from fracskip.operating import OperatingPoints
from fracskip.training import finalize, fit, loop, train
from fracskip.training.health import accuracy_warning, loss_warning, require_finite_weights
from fracskip.training.loop import STATE_SCHEMA
from fracskip.training.multipliers import shortfall
from fracskip.training.stages import BackboneTraining, StepResult
from fracskip.training.supernet import SupernetTraining

Make = Callable[..., Recipe]
Go = Callable[..., Any]  # conftest.Run
FEW = {"backbone": {"epochs": 2}, "gates": {"epochs": 1}, "joint": {"epochs": 2}}  # 3 steps each


# -- what figures say ------------------------------------------------------------------------------

TAUGHT = {"distillation": 0.8, "distillation_temperature": 4.0}
LN5 = math.log(5)


@pytest.mark.parametrize(
    ("tables", "stage", "loss", "chance"),
    [
        ({}, "backbone", 1.6 * LN5, LN5),
        ({}, "backbone", 1.4 * LN5, None),
        ({"backbone": {"optim": {"label_smoothing": 0.1}}}, "backbone", 1.6 * LN5, LN5),
        # A teacher's divergence counts 16 times at temperature 4.
        ({"supernet": TAUGHT}, "supernet", 1.4 * 13 * LN5, None),
        ({"supernet": TAUGHT}, "supernet", 1.6 * 13 * LN5, 13 * LN5),
        ({"joint": {"allocation": "batch", "gate_lr": 0}}, "joint", 1.6 * LN5, LN5),
        # A price of computation, and a deviance of sensitivities, have no such bound.
        ({}, "joint", 99.0, None),
        ({}, "gates", 99.0, None),
    ],
)
def test_a_loss_above_chance_is_said(
    tables: dict[str, Any], stage: str, loss: float, chance: float | None
) -> None:
    recipe = recipe_from_dict({"name": "x", **tables})
    found = loss_warning(recipe, stage, 1, loss, 5)
    if chance is None:
        assert found is None
    else:
        assert found is not None
        told = f"stage {stage}, epoch 2: the loss of {loss:.3g} is above the {chance:.3g} of chance"
        assert found.startswith(told)
        assert "the learning rate is too high" in found
        assert f"{stage}.optim.lr is " in found


@pytest.mark.parametrize(
    ("accuracy", "counts", "said"),
    [
        (0.2, [40] * 5, True),
        (0.22, [40] * 5, True),  # a standard error is 0.028
        (0.24, [40] * 5, False),
        (0.6, [60, 40], True),  # the more frequent class, always
        (0.7, [60, 40], False),
        (1.0, [9], False),  # of one class nothing is to be told
    ],
)
def test_a_network_at_chance_is_said(accuracy: float, counts: list[int], said: bool) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = accuracy_warning("the backbone", accuracy, labels)
    assert (found is not None) == said
    if found is not None:
        assert found.startswith(f"the backbone is right for {accuracy:.1%} of {len(labels)} valid")
        assert "weights were not loaded" in found


CURVE = ((0.01, 1.0), (0.03, -1.0))


@pytest.mark.parametrize(
    ("joint", "curve", "reached", "said"),
    [
        ({"target": 0.02, "budgets": [0.01, 0.03]}, CURVE, 0.02, None),
        (
            {"target": 0.04, "budgets": [0.01, 0.06]},
            CURVE,
            0.03,
            "budgets from 0.01 to 0.06 were asked for, and decisions reach 0.01 to 0.03: the "
            "network takes these, with a target of 0.03",
        ),
        ({"target": 0.02, "budgets": [0.005, 0.03]}, CURVE, 0.02, "decisions reach 0.01 to 0.03"),
        ({"target": 0.02, "budgets": [0.01, 0.03]}, (), 0.5, "the network has one cost, 0.5"),
        ({"target": 0.02}, (), 0.0205, None),
        ({"target": 0.02}, (), 0.03, "the target of 0.02 is not met.*the nearest cost is 0.03"),
        ({"target": 0.02, "decisions": "static", "gate_lr": 0}, (), 0.03, None),
    ],
)
def test_what_is_not_reached_is_said(
    joint: dict[str, Any], curve: Any, reached: float, said: str | None
) -> None:
    config = JointStage.model_validate(joint)
    target = min(config.target, curve[-1][0]) if curve else config.target
    found = shortfall(OperatingPoints(target=target, multiplier_curve=curve), config, reached)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_weights_and_statistics_have_to_be_finite(name: str, value: float) -> None:
    recipe = recipe_from_dict({"name": "x"})
    norm = nn.BatchNorm2d(2)
    norm.register_buffer("activation_range", torch.tensor(math.nan))  # by design
    require_finite_weights(norm, recipe, "gates", 0)
    with torch.no_grad():
        getattr(norm, name)[1] = value
    with pytest.raises(DivergedError, match=f"^{name} became NaN or infinite in stage gates, ep"):
        require_finite_weights(norm, recipe, "gates", 0)


# -- divergence ------------------------------------------------------------------------------------


def diverging(kind: type, what: str, at: tuple[int, int]) -> Any:
    """A stage's step whose loss, or one of whose weights, becomes NaN at an epoch and step."""
    step = kind.step

    def spoilt(self: Any, images: Any, labels: Any, place: Any) -> StepResult:
        result: StepResult = step(self, images, labels, place)
        if (place.epoch, place.step) != at:
            return result
        if what == "loss":
            return StepResult(math.nan, 0.0, len(labels), None)
        with torch.no_grad():
            next(iter(self.net.parameters()))[0] = math.inf
        return result

    return spoilt


@pytest.mark.parametrize(
    ("what", "at", "every", "told"),
    [
        (
            "loss",
            1,
            0,
            "the loss became nan in stage backbone, epoch 2, step 2: lower the learning",
        ),
        ("weight", 1, 0, "the loss became nan in stage backbone, epoch 2, step 3: lower"),
        ("weight", 1, 2, r"conv1.weight became NaN or infinite in stage backbone, epoch 2: lower"),
        ("weight", 2, 0, r"conv1.weight became NaN or infinite in stage backbone, epoch 2: lower"),
    ],
)
def test_a_run_that_diverges_keeps_the_state_of_before(
    tiny_recipe: Make, run: Go, opened: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, at: int, every: int, told: str,
) -> None:  # fmt: skip
    recipe = tiny_recipe(**FEW, runtime={"amp": "off", "threads": 1, "checkpoint_steps": every})
    with monkeypatch.context() as patch:
        patch.setattr(BackboneTraining, "step", diverging(BackboneTraining, what, (1, at)))
        with pytest.raises(DivergedError, match=rf"{told}.*backbone.optim.lr is 0.2.*holds the st"):
            train(recipe, tmp_path / "run")
    package = read_package(tmp_path / "run" / "state.safetensors", STATE_SCHEMA)
    place = (package.meta["position"]["epoch"], package.meta["position"]["step"])
    assert place == (1, 0)
    assert all(value.isfinite().all() for n, value in package.tensors.items() if "range" not in n)
    if what == "loss":  # what is kept is whole: without the fault the run ends as any other
        train(recipe, tmp_path / "run", resume=True)
        assert opened(tmp_path / "run").digest == run(tiny_recipe(**FEW), "whole").digest


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def untrained(seed: int) -> tuple[DynamicNetwork, list[Any]]:
    """A network at chance, and a batch of noise."""
    torch.manual_seed(seed)
    batch = (torch.randn(8, 3, 16, 16), torch.arange(8) % 5)
    blocks = [Block() for _ in range(4)]
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    options = ["skip", 4, 8, "full"]
    return convert(net.eval(), options, example_input=batch[0]), [batch]


@pytest.mark.filterwarnings("ignore:the network that was converted is right")
@pytest.mark.parametrize("what", ["loss", "weight"])
def test_a_fit_that_diverges_puts_the_network_back(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    net, batches = untrained(0)
    after: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(SupernetTraining, "step", diverging(SupernetTraining, what, (1, 0)))
    with pytest.raises(DivergedError, match=r"in stage supernet, epoch 2.*supernet.optim.lr is "
                       r"0.003, the argument lr of fit.*as it was before this epoch"):  # fmt: skip
        fit(
            net, batches, batches, 0.03, epochs=(2, 1, 1),
            on_epoch=lambda _: after.append({k: v.clone() for k, v in net.state_dict().items()}),
        )  # fmt: skip
    assert len(after) == 1
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, after[0][name], rtol=0, atol=0, equal_nan=True)
    assert not net.training


@pytest.mark.filterwarnings("ignore:the target of")
def test_a_network_at_chance_is_warned_of_once_fitting_begins() -> None:
    net, batches = untrained(0)
    seen: list[str] = []
    with pytest.warns(UserWarning, match="the network that was converted is right for") as told:
        fit(
            net,
            batches,
            batches,
            0.03,
            epochs=(1, 1, 1),
            on_epoch=lambda e: seen.append(e["stage"]),
        )
    assert seen == ["supernet", "gates", "joint"]
    assert told[0].filename == __file__


def test_a_run_says_what_went_wrong_and_records_it(
    tiny_recipe: Make, run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch's loss is too high, once a stage it is said; and the backbone is at chance."""
    step = BackboneTraining.step

    def loud(self: Any, images: Any, labels: Any, place: Any) -> StepResult:
        result = step(self, images, labels, place)
        return StepResult(25.0 * result.images, 0.0, result.images, None)

    monkeypatch.setattr(BackboneTraining, "step", loud)
    monkeypatch.setattr(loop, "plain_accuracy", lambda *_: 1 / 3)
    notes = run(tiny_recipe(**FEW)).summary["notes"]
    assert [note.split(":")[0] for note in notes[:2]] == [
        "stage backbone, epoch 1",
        "the backbone is right for 33.3% of 9 validation images, no better than chance (33.3%)",
    ]


# -- nothing is thrown away ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the network that was converted is right")
def test_a_curve_that_ends_below_the_target_is_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the stages and after them: decisions reach 0.0135, and 0.06 was asked for."""
    ends_early = ((0.005, 2.0), (0.0135, 1.0))
    monkeypatch.setattr(finalize, "multiplier_curve", lambda *_: ends_early)
    net, batches = untrained(1)
    with pytest.warns(UserWarning, match=r"budgets from 0.005 to 0.06 were asked for, and decis"):
        found = fit(net, batches, batches, epochs=(1, 1, 1))
    assert net.operating_points.target == 0.0135
    assert net.budgets == (0.005, 0.0135)
    assert net.operating_points.multiplier_curve == ends_early
    assert found["operating_points"] == net.operating_points.model_dump(mode="json")
    logits = net(batches[0][0], budget=0.0135).logits
    save(net, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", net.plain())
    assert (again.spec, again.operating_points) == (net.spec, net.operating_points)
    torch.testing.assert_close(again(batches[0][0], budget=0.0135).logits, logits)


def test_a_test_set_that_cannot_be_read_leaves_a_run_that_is_done(
    tiny_recipe: Make, run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_recipe(**FEW), "whole")
    read = loop.load_split

    def spoilt(name: str, split: str, image: ImageConfig, **rest: Any) -> ImageSet:
        if split == "test":
            raise DataError("val/red/000.png cannot be decoded")
        return read(name, "train", image, **rest)

    monkeypatch.setattr(loop, "load_split", spoilt)
    done = run(tiny_recipe(**FEW), "run")
    model = "model.safetensors"
    assert (done.folder / model).read_bytes() == (whole.folder / model).read_bytes()
    assert done.summary["test"] is None
    assert done.summary["epochs"][-1]["validation"] == whole.epochs[-1]["validation"]
    assert done.summary["notes"][-1].startswith(
        "the network is trained and saved, and was not tested: val/red/000.png cannot be decoded"
    )
