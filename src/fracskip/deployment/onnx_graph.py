"""Writing ONNX graphs by hand: nodes with names of their own, and the tensors they read.

Importing it needs the `onnx` package (`pip install 'fracskip[onnx]'`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fracskip.errors import MissingExtraError
from fracskip.version import __version__

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise MissingExtraError(
        "writing an ONNX model needs the onnx package: run `pip install 'fracskip[onnx]'`"
    ) from None

# Old enough for most runtimes; nothing later is needed. A newer IR version is refused by runtimes
# that know the operators well.
OPSET, IR_VERSION = 17, 8

FLOAT, INT64, UINT8 = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.UINT8)


def value_info(
    name: str, kind: int, shape: Sequence[int | str] | None = None
) -> onnx.ValueInfoProto:
    """A graph's input or output: name, element type, shape (strings are free dimensions)."""
    return helper.make_tensor_value_info(name, kind, shape)


class Graph:
    """A graph, or the body of a branch, under construction.

    A node's output has the node's name. A branch's body may read the outputs of the graphs around
    it; its own tensors live inside it.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def tensor(self, name: str, values: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        """Adds a constant and returns its name."""
        self._tensors.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Adds a node.

        Args:
            operator: Of ONNX's standard set.
            inputs: Names of outputs and tensors; '' leaves an optional input out.
            name: The node's.
            outputs: Their names, if not the node's name alone.
            attributes: The operator's.

        Returns:
            The name.
        """
        names = outputs or [name]
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return name

    def proto(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.GraphProto:
        """The graph as it stands."""
        return helper.make_graph(self._nodes, name, inputs, outputs, self._tensors)


def to_model(graph: onnx.GraphProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A checked model; metadata values are kept as JSON.

    Raises:
        onnx.checker.ValidationError: if the graph is no valid ONNX (a fault of ours).
    """
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fracskip",
        producer_version=__version__,
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model
