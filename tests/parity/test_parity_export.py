"""An exported network against the network itself, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.settled import settle

import fracskip
from fracskip.config import ModelSpec
from fracskip.deployment.bundle import bundle_of, export_bundle
from fracskip.dynamic import DynamicNetwork, build_network
from fracskip.errors import ConfigError
from fracskip.operating import OperatingPoints
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import read_bundle
from fracskip.runtime.engines import instruction_sets

CLASSES = tuple("abcde")


def make(**changes: Any) -> DynamicNetwork:
    """A calibrated network whose norms, steps and gates are all uneven.

    Args:
        changes: Of its spec, and fields of its operating points.
    """
    fields = OperatingPoints.model_fields.keys() & changes.keys()
    points = OperatingPoints(**{name: changes.pop(name) for name in fields})
    tree: dict[str, Any] = {
        "model": {"name": "resnet14"},
        "options": ["skip", 4, 8, "full"],
        "quant": {},
        "gate": {"width": 5},
        "image": {"size": [12, 9]},
        "class_names": CLASSES,
        "data_name": "random",
    }
    tree |= changes
    tree["quant"] = {"stem": "full", "head": "full", **tree["quant"]}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        net = build_network(ModelSpec.model_validate(tree)).eval()
        for module in net.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.4, 1.4)
                module.bias.uniform_(-0.3, 0.3)
                module.weight[0] *= -1
        images = torch.randn(64, net.spec.image.channels, *net.spec.image.size)
        settle(net, images)
        net.calibrate([images])
        if net.gate is not None:
            for value in net.gate.parameters():
                value.normal_(std=1.0)
    net.operating_points = points
    return net


def images_for(net: DynamicNetwork, count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    shape = (count, *net.spec.image.size, net.spec.image.channels)
    return (draw.random(shape) * np.linspace(30, 255, count)[:, None, None, None]).astype(np.uint8)


def both(
    net: DynamicNetwork, path: Path, count: int = 64, **keywords: Any
) -> tuple[fracskip.Prediction[torch.Tensor], fracskip.Prediction[Any], InferenceSession]:
    export_bundle(net, path)
    session = InferenceSession(path, engine="portable")
    pixels = images_for(net, count)
    with torch.inference_mode():
        wanted = net(fracskip.preprocess(pixels, net.spec.image), **keywords)
    decisions = keywords.get("decisions")
    forced = None if decisions is None else decisions.numpy()
    return wanted, session.run(pixels, decisions=forced, budget=keywords.get("budget")), session


def assert_close(found: np.ndarray, wanted: np.ndarray, typical: float, most: float) -> None:
    """Nearly all agree to rounding; where a level falls the other way, the logits move a little."""
    off = np.abs(found - wanted)
    assert float(np.median(off)) < typical
    assert float(off.max()) < most


CASES: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"quant": {"stream": "int8"}},
    "feedforward": {"gate": {"width": 4, "kind": "feedforward"}},
    "int8 feedforward": {"quant": {"stream": "int8"}, "gate": {"kind": "feedforward"}},
    "block bias": {"gate": {"width": 5, "block_bias": True}, "quant": {"stream": "int8"}},
    "grey": {"image": {"size": [8, 15], "channels": 1, "mean": [0.3], "std": [0.4]}},
    "multiplier": {"multiplier": -1.5},
    "int8 multiplier": {"multiplier": 1.5, "quant": {"stream": "int8"}},
    "narrow": {"options": ["skip", 2, 3, 6], "quant": {"stream": "int8"}},
    "no skip": {"options": [4, 8]},
    "no integers": {"options": ["skip", "full"], "quant": {"scheme": "paper"}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_it_decides_and_classifies_as_the_network_does(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    wanted, found, session = both(make(**changes), tmp_path / "x.fsk")
    same = (wanted.decisions.numpy() == found.decisions).all(1)
    assert same.mean() > 0.95
    assert len(np.unique(found.decisions)) > 1
    logits = wanted.logits.numpy()
    scale = logits.std()
    assert_close(found.logits[same], logits[same], typical=1e-3 * scale, most=0.5 * scale)
    np.testing.assert_allclose(session.cost(found).image_cp[same], wanted.cost[same])
    np.testing.assert_allclose(found.cost[same], wanted.cost[same])


@pytest.mark.parametrize("stream", ["float", "int8"])
@pytest.mark.parametrize("option", ["skip", "3", "8", "12", "16", "full"])
def test_every_option(option: str, stream: str, tmp_path: Path) -> None:
    net = make(options=["skip", 3, 8, 12, 16, "full"], quant={"stream": stream})
    wanted, found, _ = both(net, tmp_path / "x.fsk", decisions=net.forced(option, 64))
    logits = wanted.logits.numpy()
    # Activations of 12 and 16 bits stay in floating point, and are not rounded.
    typical = {"12": 2e-2, "16": 1e-2}.get(option, 1e-3)
    assert_close(found.logits, logits, typical * logits.std(), 0.5 * logits.std())


def test_budgets(tmp_path: Path) -> None:
    net = make(gate={"width": 5, "budget_input": True}, target=0.2)
    wanted, found, session = both(net, tmp_path / "x.fsk")
    assert (wanted.decisions.numpy() == found.decisions).all(1).mean() > 0.95
    other = session.run(images_for(net, 64), budget=0.001)
    assert (other.decisions != found.decisions).any()
    wanted, found, _ = both(net, tmp_path / "x.fsk", budget=torch.linspace(0.001, 1, 64))
    assert (wanted.decisions.numpy() == found.decisions).all(1).mean() > 0.95


@pytest.mark.parametrize("gate", ["recurrent", "feedforward"])
def test_a_curve_of_budgets(gate: str, tmp_path: Path) -> None:
    curve = ((0.02, 3.0), (0.1, -0.5), (0.5, -4.0))
    net = make(
        gate={"width": 5, "kind": gate}, target=0.2, multiplier=-0.25, multiplier_curve=curve
    )
    wanted, found, session = both(net, tmp_path / "x.fsk")
    assert (wanted.decisions.numpy() == found.decisions).all(1).mean() > 0.95
    assert session.plan.budgets == (0.02, 0.5)
    costs = []
    for budget in (0.02, 0.05, 0.3, torch.linspace(0.02, 0.5, 64)):
        wanted, found, _ = both(net, tmp_path / "x.fsk", budget=budget)
        assert (wanted.decisions.numpy() == found.decisions).all(1).mean() > 0.95
        costs.append(float(wanted.cost.mean()))
        if instruction_sets():
            native = InferenceSession(tmp_path / "x.fsk", engine="native")
            fast = native.run(images_for(net, 64), budget=np.asarray(budget))
            assert (fast.decisions == found.decisions).all(1).mean() > 0.95
    assert costs[0] < costs[1] < costs[2]


def test_a_multiplier_that_follows_the_budget(tmp_path: Path) -> None:
    curve = ((0.01, 9.0), (0.02, 4.0), (0.05, 0.5))
    gate = {"width": 5, "output": "sensitivity", "budget_input": True, "block_bias": True}
    points: dict[str, Any] = {"target": 0.03, "multiplier": 2.0, "multiplier_curve": curve}
    net = make(gate=gate, options=["skip", 2, 4, 8], **points)
    assert net.gate is not None
    with torch.no_grad():
        net.gate.out.bias.copy_(torch.tensor([-3.0, -6, -8, -16]))
    costs = []
    for budget in (None, 0.01, 0.03, torch.linspace(0.01, 0.05, 64)):
        wanted, found, session = both(net, tmp_path / "x.fsk", budget=budget)
        assert (wanted.decisions.numpy() == found.decisions).all(1).mean() > 0.95
        costs.append(float(wanted.cost.mean()))
        if instruction_sets():
            native = InferenceSession(tmp_path / "x.fsk", engine="native")
            asked = None if budget is None else np.asarray(budget)
            fast = native.run(images_for(net, 64), budget=asked)
            assert (fast.decisions == found.decisions).all(1).mean() > 0.95
    assert session.plan.operating_points.model_dump() == net.operating_points.model_dump()
    assert costs[1] < costs[2]


@pytest.mark.parametrize("budget_input", [False, True])
@pytest.mark.parametrize("stream", ["float", "int8"])
def test_cascades(stream: str, budget_input: bool, tmp_path: Path) -> None:
    curve = ((0.02, 3.0), (0.1, -0.5), (0.5, -4.0))
    gate = {"width": 5, "budget_input": budget_input}
    net = make(quant={"stream": stream}, gate=gate, target=0.2, multiplier_curve=curve)
    with torch.inference_mode():
        once = net(fracskip.preprocess(images_for(net, 64), net.spec.image), budget=0.05)
    least = float(once.logits.softmax(1).amax(1).median())
    cascade = ((0.05, 0.02, 0.1, least), (0.3, 0.1, 0.5, least))
    net.operating_points = net.operating_points.changed(cascade=cascade)
    for budget in (None, 0.05, torch.linspace(0.05, 0.3, 64)):
        wanted, found, session = both(net, tmp_path / "x.fsk", budget=budget)
        assert session.plan.budgets == (0.05, 0.3)
        asked = None if budget is None else np.asarray(budget)
        results = [found]
        for isa in instruction_sets():
            native = InferenceSession(tmp_path / "x.fsk", engine="native", isa=isa, threads=2)
            results.append(native.run(images_for(net, 64), budget=asked))
        for result in results:
            assert 0 < result.escalated.sum() < len(result.escalated)
            same = (result.decisions == wanted.decisions.numpy()).all(1)
            first, other = (each.executions[0].decisions for each in (result, wanted))
            same &= (first == other.numpy()).all(1)
            same &= result.escalated == wanted.escalated.numpy()
            assert same.mean() > 0.9
            logits = wanted.logits.numpy()
            scale = logits.std()
            assert_close(result.logits[same], logits[same], 1e-3 * scale, 0.5 * scale)
            cost = session.cost(result)
            np.testing.assert_allclose(cost.image_cp[same], wanted.cost[same], rtol=1e-5)
            np.testing.assert_allclose(result.cost[same], wanted.cost[same], rtol=1e-5)


def test_decisions_are_forced_on_one_member(tmp_path: Path) -> None:
    curve, cascade = ((0.02, 3.0), (0.5, -4.0)), ((0.05, 0.02, 0.1, 1.0), (0.3, 0.1, 0.5, 1.0))
    net = make(target=0.2, multiplier_curve=curve, cascade=cascade)
    _, found, _ = both(net, tmp_path / "x.fsk", decisions=net.forced("full", 64))
    assert len(found.executions) == 1


@pytest.mark.parametrize("stream", ["float", "int8"])
@pytest.mark.parametrize("option", ["full", 8, 4])
def test_static_networks(option: Any, stream: str, tmp_path: Path) -> None:
    net = make(options=[option], quant={"stream": stream})
    wanted, found, session = both(net, tmp_path / "x.fsk")
    assert session.plan.gate is None
    np.testing.assert_array_equal(found.decisions, wanted.decisions.numpy())
    logits = wanted.logits.numpy()
    assert_close(found.logits, logits, 1e-3 * logits.std(), 0.5 * logits.std())


def test_levels_of_an_int8_stream(tmp_path: Path) -> None:
    """Block by block from the same levels: what the network fake-quantises is what is stored."""
    from fracskip.runtime.portable import PortableEngine

    net = make(quant={"stream": "int8"})
    export_bundle(net, tmp_path / "x.fsk")
    engine = PortableEngine([read_bundle(tmp_path / "x.fsk")], 1).executors[0]
    assert net.stream is not None
    steps = net.stream.steps
    pixels = torch.from_numpy(images_for(net, 16))
    with torch.inference_mode():
        stem, *parts = engine.network.parts[:-1]
        levels = stem.execute(engine.normalised(pixels))
        values = net.sections.stem(fracskip.preprocess(pixels, net.spec.image))
        assert _share_off(values / steps[0], levels) < 1e-3
        entry = 0
        for block, part in zip(net.sections.every, parts, strict=True):
            for choice, option in enumerate(block.options):
                wanted = block.execute(levels * steps[entry], option) / steps[block.stage]
                found = part.execute(levels, choice)
                assert _share_off(wanted, found) < 1e-3, (block.name, option)
            levels = part.execute(levels, min(2, len(block.options) - 1))
            assert 0.02 < float((levels > 0).float().mean()) < 1
            entry = block.stage


def _share_off(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Share of levels that differ, by one: sums that lie on an edge."""
    off = (wanted.round() - found).abs()
    assert float(off.max()) <= 1
    return float((off > 0).float().mean())


def test_what_the_plan_says(tmp_path: Path) -> None:
    net = make(quant={"stream": "int8"}, target=0.1)
    net.digest = "sha256:abc"
    digest = export_bundle(net, tmp_path / "x.fsk")
    bundle = read_bundle(tmp_path / "x.fsk")
    plan, spec = bundle.plan, net.spec
    assert bundle.digest == digest
    assert (plan.name, plan.source) == ("resnet14", "sha256:abc")
    assert plan.operating_points.target == 0.1
    assert (plan.class_names, plan.data_name, plan.image) == (CLASSES, "random", spec.image)
    assert plan.options == spec.options
    assert plan.cost == net.profile
    names = [name for name, _ in net.backbone.named_blocks()]
    assert [part.name for part in plan.network.parts] == ["stem", *names, "head"]
    assert [part.options for part in plan.network.parts[:2]] == [("full",), ("8",)]
    assert plan.network.parts[-1].options == ("full",)
    # Levels of the stream are width 8's own input.
    assert "parts.2.8.0.input" not in bundle.tensors
    assert "parts.2.4.0.input" in bundle.tensors
    plain, _ = bundle_of(make())
    assert plain.network.parts[1].options == ("full",)
    assert plain.stream == "float"


@torch.no_grad()
def test_multipliers_are_rounded_once() -> None:
    net = make()
    _, tensors = bundle_of(net)
    module = net.backbone.get_submodule(net.blocks[0].name)
    conv, norm, following = module.conv1, module.bn1, module.conv2
    option = net.options[1]
    slot = conv.slot(option)
    weight, bias, mean, var = (term.double() for term in norm._terms(option))
    gain = weight / (var + norm.eps).sqrt()
    taken = float(conv.quantiser.activation_step[slot])
    given = float(following.quantiser.activation_step[slot])
    exact = conv.quantiser.weight_step[slot].double() * gain * taken / given
    scale = tensors["parts.2.4.0.scale"]
    off = np.abs(scale.astype(np.float64) / exact.detach().numpy() - 1)
    assert off.max() <= 2**-24 * 1.0001
    found = tensors["parts.2.4.0.bias"]
    wanted = ((bias - mean * gain) / given).detach().numpy()
    np.testing.assert_array_less(np.abs(found - wanted), 2**-24 * np.abs(wanted) + 1e-30)


def test_the_papers_quantisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'paper' quantisation is affine, .* run the checkpoint"):
        export_bundle(make(quant={"scheme": "paper"}), tmp_path / "x.fsk")
    assert not (tmp_path / "x.fsk").exists()


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export_bundle(net, tmp_path / "x.fsk")
    first = (tmp_path / "x.fsk").read_bytes()
    export_bundle(net, tmp_path / "x.fsk")
    assert (tmp_path / "x.fsk").read_bytes() == first
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
