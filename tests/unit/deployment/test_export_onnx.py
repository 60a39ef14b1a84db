"""The ONNX models: the bundle's arithmetic in another dialect, executed by other runtimes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from fracskip.cli import main
from fracskip.config import ImageConfig
from fracskip.deployment.onnx import backbone_onnx, bundle_onnx, export_onnx, network_onnx
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import CheckpointError, ConfigError, MissingExtraError
from fracskip.models import create_model
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import parse_bundle
from support.random_bundle import random_bundle, random_images

Predicted = tuple[NDArray[np.float32], NDArray[np.int64]]
MakeNet = Callable[..., DynamicNetwork]
FAST = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
LITERAL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
INT8 = {"stream": "int8"}


def open_session(
    model: onnx.ModelProto, level: Any = FAST, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, x: torch.Tensor, level: Any = FAST, **others: Any) -> Predicted:
    """Image by image."""
    session = open_session(model, level)
    rows = [session.run(None, {"images": image[None].numpy(), **others}) for image in x]
    logits, decisions = zip(*rows, strict=True)
    return np.concatenate(logits), np.concatenate(decisions)


def in_torch(net: DynamicNetwork, x: torch.Tensor, **others: Any) -> Predicted:
    with torch.no_grad():
        out = net(x, **others)
    return out.logits.numpy(), out.decisions.numpy()


def some_images(net: DynamicNetwork, count: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    image = net.spec.image
    return torch.randn(count, image.channels, *image.size, generator=generator)


def assert_agree(found: Predicted, wanted: Predicted, atol: float = 1e-4) -> None:
    """Up to the few values between two integers that another order of summation moves."""
    (logits, decisions), (other_logits, other_decisions) = found, wanted
    assert logits.dtype == np.float32
    assert decisions.dtype == np.int64
    assert decisions.shape == other_decisions.shape
    same = (decisions == other_decisions).all(1)
    assert same.mean() >= 0.9
    off = np.abs(logits - other_logits).max(1)[same]
    assert np.median(off) <= atol * max(1, np.abs(other_logits).max())


class TestBackbone:
    @pytest.mark.parametrize("batch", [1, "images"])
    def test_it_is_the_network_in_full(self, batch: int | str) -> None:
        torch.manual_seed(0)
        net = create_model("resnet8", 1, 7)
        image = ImageConfig(size=(12, 20), channels=1, mean=(0.5,), std=(0.2,))
        x = torch.randn(4, 1, 12, 20)
        with torch.no_grad():
            net.train()(x)
            wanted = net.eval()(x).numpy()
        session = open_session(backbone_onnx(net, image, batch))
        groups = [x] if batch == "images" else x.split(1)
        found = np.concatenate([session.run(None, {"images": part.numpy()})[0] for part in groups])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)

    def test_the_network_is_left_alone(self) -> None:
        net = create_model("resnet8").eval()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        backbone_onnx(net, ImageConfig())
        after = net.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


OPTION_SETS = (
    ["full"],
    ["8"],
    ["3"],
    ["skip", "full"],
    ["skip", "4", "8", "full"],
    ["skip", "2", "3", "5", "6", "7", "16"],
)


@pytest.mark.parametrize("quant", [{}, INT8], ids=["float", "int8"])
@pytest.mark.parametrize("options", OPTION_SETS, ids="-".join)
def test_every_option_agrees_with_torch(
    make_net: MakeNet, options: list[str], quant: dict[str, str]
) -> None:
    net = make_net(options=options, quant=quant)
    x = some_images(net)
    assert_agree(run(network_onnx(net), x), in_torch(net, x))


@pytest.mark.parametrize(
    "gate",
    [
        {"kind": "feedforward", "width": 3},
        {"kind": "recurrent", "width": 5, "block_bias": True},
        {"kind": "recurrent", "width": 2},
    ],
    ids=["feedforward", "block bias", "narrow"],
)
def test_every_gate_agrees_with_torch(make_net: MakeNet, gate: dict[str, Any]) -> None:
    net = make_net(gate=gate, multiplier=-0.3)
    if gate.get("block_bias"):
        assert net.gate is not None
        own = net.gate.block_bias
        assert isinstance(own, torch.nn.Parameter)
        own.data = torch.linspace(-1, 1, own.numel()).reshape(own.shape)
    x = some_images(net)
    found = run(network_onnx(net), x)
    assert len(np.unique(found[1])) > 1
    assert_agree(found, in_torch(net, x))


@pytest.mark.parametrize("budget_input", [False, True])
@pytest.mark.parametrize("output", ["logit", "sensitivity"])
@pytest.mark.parametrize("budget", [0.01, 0.015, 0.03, 0.05])
def test_a_budget_has_its_multiplier(
    make_net: MakeNet, budget: float, output: str, budget_input: bool
) -> None:
    net = make_net(
        options=["skip", 2, 4, 8],
        gate={"width": 4, "output": output, "budget_input": budget_input},
        multiplier_curve=((0.01, 9.0), (0.02, 4.0), (0.05, 0.5)),
        multiplier=2.0,
    )
    x = some_images(net)
    found = run(network_onnx(net), x, budget=np.array([[budget]], np.float32))
    assert_agree(found, in_torch(net, x, budget=budget))


def test_two_runs_are_a_cascade(make_net: MakeNet) -> None:
    """As docs/deployment.md says it: by the metadata alone."""
    net = make_net(multiplier_curve=((0.02, 3.0), (0.5, -3.0)), target=0.1)
    x = some_images(net)
    sure = torch.from_numpy(in_torch(net, x, budget=0.05)[0]).softmax(1).amax(1).sort().values
    least = float(sure[len(sure) // 2 - 1 : len(sure) // 2 + 1].mean())  # no image's own
    points = ((0.06, 0.05, 0.4, least), (0.3, 0.05, 0.4, least))
    net.operating_points = net.operating_points.changed(cascade=points)
    model = network_onnx(net)
    (rows,) = (json.loads(p.value) for p in model.metadata_props if p.key == "cascade")
    assert [tuple(row) for row in rows] == list(points)
    _, first, second, probability = rows[0]
    logits, decisions = run(model, x, budget=np.array([[first]], np.float32))
    with torch.no_grad():
        wanted = net(x, budget=0.06)
    assert_agree((logits, decisions), (logits, wanted.executions[0].decisions.numpy()))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    escalated = 1 / powers.sum(1) < probability
    assert 0 < escalated.sum() < len(x)
    assert (escalated == wanted.escalated.numpy()).all()
    more = run(model, x[torch.from_numpy(escalated)], budget=np.array([[second]], np.float32))
    logits[escalated], decisions[escalated] = more
    assert_agree((logits, decisions), (wanted.logits.numpy(), wanted.decisions.numpy()))


def test_without_a_curve_there_is_one_multiplier(make_net: MakeNet) -> None:
    gate = {"width": 4, "output": "sensitivity"}
    net = make_net(options=["skip", 2, 4, 8], gate=gate, multiplier=2.0)
    assert net.gate is not None
    with torch.no_grad():
        net.gate.out.bias.copy_(torch.tensor([-3.0, -6, -8, -16]))
    x = some_images(net)
    found = run(network_onnx(net), x)
    assert_agree(found, in_torch(net, x))
    net.operating_points = net.operating_points.changed(multiplier=400.0)
    assert in_torch(net, x)[1].mean() < found[1].mean()


@pytest.mark.parametrize("budget", [0.01, 1.0])
def test_a_budget_is_an_input(make_net: MakeNet, budget: float) -> None:
    net = make_net(gate={"width": 4, "budget_input": True})
    assert net.gate is not None
    assert net.gate.budget_embed is not None
    torch.nn.init.constant_(net.gate.budget_embed.bias, 0.5)
    x = some_images(net)
    found = run(network_onnx(net), x, budget=np.array([[budget]], np.float32))
    assert_agree(found, in_torch(net, x, budget=budget))


def test_equal_logits_take_the_first_option(make_net: MakeNet) -> None:
    net = make_net()
    assert net.gate is not None
    torch.nn.init.zeros_(net.gate.out.weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(net.gate.out.bias)  # type: ignore[arg-type]
    _, decisions = run(network_onnx(net), some_images(net, 2))
    assert not decisions.any()


SHAPES: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"blocks": "bottleneck", "stem7": True},
    "ends": {"ends": 8},
    "uneven": {"uneven": True, "stem7": True},
}


@pytest.mark.parametrize("level", [FAST, LITERAL], ids=["optimised", "as written"])
@pytest.mark.parametrize("stream", ["float", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_bundle_in_another_dialect(
    tmp_path: Path, shape: str, stream: Any, level: Any
) -> None:
    data = random_bundle(3, stream=stream, image=(24, 16), first=8, **SHAPES[shape])
    (tmp_path / "random.fsk").write_bytes(data)
    bundle = parse_bundle(data)
    pixels = random_images(bundle.plan, 24)
    wanted = InferenceSession(tmp_path / "random.fsk", engine="portable").run(pixels)
    x = preprocess(pixels, bundle.plan.image).contiguous()
    found = run(bundle_onnx(bundle.plan, bundle.tensors), x, level)
    assert_agree(found, (wanted.logits, wanted.decisions))


def executed(profile: Path) -> set[str]:
    """Names of the nodes that a profiled session executed."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    names = [event["name"] for event in events if event["cat"] == "Node"]
    return {name.removesuffix("_kernel_time") for name in names}


def test_only_what_is_chosen_is_executed(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net(options=["skip", "4", "8", "full"])
    model = network_onnx(net)
    labels, names = net.options.labels, [block.name for block in net.blocks]
    seen = set()
    for index, image in enumerate(some_images(net)):
        session = open_session(model, LITERAL, profile=tmp_path / f"{index}")
        _, decisions = session.run(None, {"images": image[None].numpy()})
        nodes = executed(Path(session.end_profiling()))
        branches = {node.split("/branch.")[0] for node in nodes if "/branch." in node}
        chosen = {
            f"{name}/{labels[choice]}" for name, choice in zip(names, decisions[0], strict=True)
        }
        always = {"stem", "layer1.0", "head"}
        assert branches == {path for path in chosen if not path.endswith("/skip")} | always
        assert chosen <= nodes
        seen |= chosen
    assert {path.split("/")[1] for path in seen} >= {"skip", "full"}


def all_nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def test_nodes_have_names_of_their_own(make_net: MakeNet) -> None:
    names = [node.name for node in all_nodes(network_onnx(make_net()).graph)]
    assert all(names)
    assert len(set(names)) == len(names)
    assert "layer2.0/4/branch.0" in names


def test_weights_of_integers_are_bytes(make_net: MakeNet) -> None:
    bodies = (
        attribute.g
        for node in all_nodes(network_onnx(make_net(options=["skip", "8"])).graph)
        for attribute in node.attribute
        if attribute.HasField("g")
    )
    tensors = itertools.chain.from_iterable(body.initializer for body in bodies)
    kinds = {item.data_type for item in tensors if item.name.endswith("/branch.0.weight")}
    assert kinds == {onnx.TensorProto.INT8}


def test_it_says_what_it_is(net: DynamicNetwork, tmp_path: Path) -> None:
    export_onnx(net, tmp_path / "deep" / "net.onnx")
    model = onnx.load(tmp_path / "deep" / "net.onnx")
    said = {item.key: json.loads(item.value) for item in model.metadata_props}
    spec = net.spec
    assert said["mean"] == pytest.approx(spec.image.mean)
    assert said["std"] == pytest.approx(spec.image.std)
    assert tuple(said["class_names"]) == spec.class_names
    assert tuple(said["options"]) == spec.options
    assert said["gated_blocks"] == [block.name for block in net.blocks]
    assert said["cascade"] == []
    assert [item.name for item in model.graph.input] == ["images"]
    assert [item.name for item in model.graph.output] == ["logits", "decisions"]


def test_the_papers_quantisation_is_refused(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net(quant={"scheme": "paper"})
    with pytest.raises(ConfigError, match="'paper' quantisation is affine"):
        export_onnx(net, tmp_path / "net.onnx")


def test_a_folder_that_cannot_be_written(net: DynamicNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        export_onnx(net, tmp_path / "file" / "net.onnx")


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fracskip.deployment.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fracskip\[onnx\]'"):
        __import__("fracskip.deployment.onnx")


def test_the_command_line_writes_it(checkpoint_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert main(["export", str(checkpoint_file), "--to", str(path)]) == 0
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("quant", [{}, INT8], ids=["float", "int8"])
def test_openvino_executes_it(make_net: MakeNet, quant: dict[str, str]) -> None:
    openvino = pytest.importorskip("openvino")
    net = make_net(quant=quant)
    x = some_images(net)
    core = openvino.Core()
    model = core.read_model(network_onnx(net).SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = [compiled(image[None].numpy()) for image in x]
    logits, decisions = (np.concatenate([row[key].copy() for row in rows]) for key in (0, 1))
    assert_agree((logits, decisions), in_torch(net, x), atol=0.02)
