"""Networks as ONNX models, for runtimes other than our own.

A model is a bundle in another dialect: the same plan, the same tensors, the same arithmetic
(docs/bundle.md), written node by node. Only the chosen option's nodes of a block are executed.

Shapes: C channels, H height, W width, L gated blocks, N classes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fracskip.config import GateConfig, ImageConfig, ModelConfig, ModelSpec, QuantConfig
from fracskip.deployment.bundle import bundle_of
from fracskip.deployment.onnx_gate import GateWriter
from fracskip.deployment.onnx_graph import FLOAT, INT64, Graph, to_model, value_info
from fracskip.deployment.onnx_pieces import Arrays, Flow
from fracskip.deployment.onnx_programs import ProgramWriter
from fracskip.dynamic import DynamicNetwork
from fracskip.files import write_atomically
from fracskip.operating.cascade import CascadePoints
from fracskip.runtime.cascade import Cascade
from fracskip.runtime.plan import Plan

if TYPE_CHECKING:
    import onnx


CASCADE_SCHEMA = "fracskip.onnx-cascade/1"


def export_onnx(net: DynamicNetwork | Cascade, path: str | Path) -> None:
    """Writes a network as an ONNX model; see `network_onnx`. A cascade is a model for each network.

    Args:
        net: A network of 'lsq' quantisation, or one without quantised options; or a cascade.
        path: Where to; by custom it ends in .onnx.

    Raises:
        ConfigError: if its quantisation has no place in a bundle.
        CheckpointError: if the file cannot be written.
    """
    path = Path(path)
    if not isinstance(net, Cascade):
        write_atomically(path, network_onnx(net).SerializeToString())
        return
    names = [f"{path.stem}.{index}.onnx" for index in range(len(net.bundle.networks))]
    for name, network in zip(names, net.bundle.networks, strict=True):
        model = bundle_onnx(network.plan, network.tensors)
        write_atomically(path.with_name(name), model.SerializeToString())
    points = net.plan.model_dump(mode="json", include=set(CascadePoints.model_fields))
    inputs = [each.plan.image.model_dump(mode="json") for each in net.bundle.networks]
    tree = {"schema": CASCADE_SCHEMA, "models": names, "inputs": inputs, **points}
    write_atomically(path.with_suffix(".json"), (json.dumps(tree, indent=1) + "\n").encode())


def network_onnx(net: DynamicNetwork) -> onnx.ModelProto:
    """A network as an ONNX model; see `bundle_onnx`.

    Args:
        net: A network of 'lsq' quantisation, or one without quantised options.

    Raises:
        ConfigError: if its quantisation has no place in a bundle.
    """
    return bundle_onnx(*bundle_of(net))


def bundle_onnx(plan: Plan, tensors: Arrays) -> onnx.ModelProto:
    """A bundle's content as an ONNX model for one image a run.

    Inputs: `images`, float32 (1, C, H, W), normalised (`fracskip.preprocess`); for gates that take
    one also `budget`, float32 (1, 1). Outputs: `logits`, float32 (1, N); `decisions`, int64 (1, L),
    indices into the metadata's `options`. The model is one member: where the metadata's `cascade`
    is not empty, whoever runs it decides what is escalated (docs/deployment.md).

    Args:
        plan: The bundle's plan.
        tensors: Its tensors, checked against the plan.
    """
    graph = Graph()
    _walk(graph, plan, tensors)
    image = plan.image
    inputs = [value_info("images", FLOAT, (1, image.channels, *image.size))]
    if plan.budgets is not None:
        inputs.append(value_info("budget", FLOAT, (1, 1)))
    outputs = [
        value_info("logits", FLOAT, (1, plan.network.classes)),
        value_info("decisions", INT64, (1, len(plan.gated_names))),
    ]
    return to_model(
        graph.proto(plan.name, inputs, outputs),
        {
            "mean": image.mean,
            "std": image.std,
            "class_names": plan.class_names,
            "options": plan.options,
            "gated_blocks": plan.gated_names,
            "stream": plan.stream,
            "target": plan.operating_points.target,
            "cascade": plan.operating_points.cascade,
            "data": plan.data_name,
            "source": plan.source,
        },
    )


def backbone_onnx(backbone: nn.Module, image: ImageConfig, batch: int | str = 1) -> onnx.ModelProto:
    """The plain network in full precision as a static ONNX model.

    Input `images`: float32 (batch, C, H, W), normalised (`fracskip.preprocess`). Output `logits`:
    float32 (batch, N).

    Args:
        backbone: The plain network; BatchNorm's statistics are folded into its convolutions.
        image: Its images' size and normalisation.
        batch: Images a run, or a name to leave that open.

    Raises:
        ConfigError: if the network can't be traced, or a step of it has no place in a bundle.
    """
    backbone = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        classes = backbone(torch.zeros(1, image.channels, *image.size)).shape[1]
    spec = ModelSpec(
        model=ModelConfig(name="backbone"),
        options=("full",),
        quant=QuantConfig(),
        gate=GateConfig(),
        image=image,
        class_names=tuple(map(str, range(classes))),
        data_name="",
    )
    return static_onnx(*bundle_of(DynamicNetwork(backbone, spec)), batch)


def static_onnx(plan: Plan, tensors: Arrays, batch: int | str = 1) -> onnx.ModelProto:
    """A static network's bundle as an ONNX model without decisions; see `backbone_onnx`.

    Args:
        plan: The bundle's plan, of one option.
        tensors: Its tensors.
        batch: Images a run, or a name to leave that open.
    """
    image = plan.image
    graph = Graph()
    _walk(graph, plan, tensors, tell_decisions=False)
    images = value_info("images", FLOAT, (batch, image.channels, *image.size))
    logits = value_info("logits", FLOAT, (batch, plan.network.classes))
    metadata = {"mean": image.mean, "std": image.std}
    return to_model(graph.proto(plan.name, [images], [logits]), metadata)


def _walk(graph: Graph, plan: Plan, tensors: Arrays, tell_decisions: bool = True) -> None:
    """Adds everything from `images` to `logits` and `decisions`."""
    network = ProgramWriter(plan, tensors)
    gate = None
    if plan.gate is not None:
        gate = GateWriter(graph, plan, tensors, "budget")
    x = Flow("images", "images")
    choices: list[str] = []
    for index, (block, gated) in enumerate(network.parts):
        choice = None
        if gate is not None and gated:
            name = f"{block}/gate"
            pooled = network.pooled(graph, index, x, f"{name}.pooled")
            choice = gate.decide(len(choices), pooled, name)
            choices.append(choice)
        x = network.block(graph, index, x, choice)
    network.head(graph, x, "logits")
    if choices:
        row = graph.node("Concat", choices, "decisions.row", axis=0)
        graph.node("Unsqueeze", [row, graph.tensor("decisions.axes", [0], np.int64)], "decisions")
    elif tell_decisions:
        always = np.zeros((1, len(plan.gated_names)), np.int64)
        graph.node("Identity", [graph.tensor("decisions.only", always, np.int64)], "decisions")
