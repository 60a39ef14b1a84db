"""The layers of a network that is traced, each as a plain one.

A layer is found by the path of its weights. A module that is not a plain layer - its class computes
more, its weights are computed, it has hooks - is replaced by one: what else it did is nodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fracskip.errors import ConfigError
from fracskip.models import layers
from fracskip.models.draft import Draft
from fracskip.models.graph import Ref

BATCH_NORMS = ("_native_batch_norm_legit_no_training", "batch_norm", "cudnn_batch_norm")


class PlainLayers:
    """Finds layers, and replaces those that are not plain.

    Args:
        net: The network.
        modules: Its modules, by their first path.
        names: The first path of each module, by all of its paths.
        draft: The nodes so far.
    """

    def __init__(
        self,
        net: nn.Module,
        modules: Mapping[str, nn.Module],
        names: Mapping[str, str],
        draft: Draft,
    ) -> None:
        self._net, self._modules, self._names, self._draft = net, modules, names, draft
        self._layers: dict[str, nn.Module] = {}
        self._folded: list[str] = []

    def find(
        self, name: str, args: list[Any], kwargs: dict[str, Any], stack: list[str]
    ) -> tuple[str, str] | None:
        """The layer that an operation is, if a module holds its weights.

        Args:
            name: ATen's name of it.
            args: Its arguments.
            kwargs: Likewise, by name.
            stack: Paths of the modules whose code it belongs to.

        Returns:
            Its kind and its path.

        Raises:
            ConfigError: for a norm that takes the statistics of the batch.
        """
        if not args or not isinstance(args[0], Ref) or args[0].node not in self._draft.live:
            return None
        if name in ("conv2d", "linear"):
            op, (weight, bias) = name, (*args[1:3], None)[:2]
        elif name in BATCH_NORMS:
            if name == "batch_norm" and args[5]:
                raise ConfigError(
                    f"{stack[-1] if stack else 'the network'} normalises by the statistics of the "
                    "batch in evaluation mode, too: an image's logits depend on the others; "
                    "give it running statistics (track_running_stats=True)"
                )
            op, (weight, bias) = "batch_norm", args[1:3]
        else:
            return None
        path = self._holder(op, weight or args[3], stack)
        if path is None or not self._becomes_plain(op, path, args, kwargs, weight, bias):
            return None
        return op, path

    def _becomes_plain(
        self, op: str, path: str, args: list[Any], kwargs: dict[str, Any], *terms: Ref | None
    ) -> bool:
        """Whether a module is a plain layer with these terms, or can be replaced by one."""
        if self._stays(op, path, *terms):
            return True
        new, earlier = self._plain(op, args, kwargs, *terms), self._layers.get(path)
        if earlier is not None and repr(earlier) != repr(new):
            return False  # called in two ways
        used = [
            self._draft.nodes[index].path.rpartition(".")[2]
            for each in terms
            if each is not None and self._draft.nodes[each.node].op != "tensor"
            for index in self._draft.needed_by(each.node)
        ]
        if used and path not in self._folded:
            self._folded.append(path)
        self._layers[path] = layers.take_over(new, self._modules[path], used)
        return True

    def _holder(self, op: str, weight: Any, stack: list[str]) -> str | None:
        """Path of the module whose weights an operation takes."""
        node, inner = self._draft.nodes[weight.node], stack[-1] if stack else ""
        name = node.path.rpartition(".")[2] if node.path else "weight"
        places = [inner]
        if node.op == "tensor" and node.path:
            if name not in ("weight", "running_mean"):
                return None
            places.append(self._names[node.path.rpartition(".")[0]])
            held = self._draft.tensor(node.path)
            for place in places:
                if place and getattr(self._modules[place], name, None) is held:
                    return place
            return None
        # Computed weights: of a layer of this kind, which keeps them to itself.
        live = weight.node in self._draft.live
        own = bool(inner) and isinstance(self._modules[inner], layers.KINDS[op])
        return inner if own and not live else None

    def _stays(self, op: str, path: str, weight: Ref | None, bias: Ref | None) -> bool:
        """Whether a module is a plain layer with these very weights."""
        module: Any = self._modules[path]
        if not layers.is_plain(module, op) or type(module).__name__ == "SyncBatchNorm":
            return False
        return all(
            (None if ref is None else self._held(ref)) is own
            for ref, own in ((weight, module.weight), (bias, module.bias))
        )

    def _held(self, ref: Ref) -> Tensor | None:
        node = self._draft.nodes[ref.node]
        return self._draft.tensor(node.path) if node.op == "tensor" and node.path else None

    def _plain(
        self, op: str, args: list[Any], kwargs: dict[str, Any], *terms: Ref | None
    ) -> nn.Module:
        weight, bias = (None if ref is None else self._draft.value(ref.node) for ref in terms)
        if op == "conv2d":
            names = ("stride", "padding", "dilation", "groups")
            usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            geometry = {**usual, **dict(zip(names, args[3:], strict=False)), **kwargs}
            shaped = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in geometry.items()
            }
            assert weight is not None
            return layers.make_conv2d(weight, bias, shaped)
        if op == "linear":
            assert weight is not None
            return layers.make_linear(weight, bias)
        mean, var = (self._draft.value(ref.node) for ref in args[3:5])
        return layers.make_batch_norm(
            len(self._draft.nodes[args[0].node].shape),
            weight,
            bias,
            mean,
            var,
            next(each for each in reversed(args) if isinstance(each, float)),
        )

    def replace(self) -> bool:
        """Puts plain layers into the network and takes hooks off; whether there was anything."""
        hooked = [path for path, module in self._modules.items() if layers.has_hooks(module)]
        noted = [path for path in hooked if path not in self._folded]
        for module in self._modules.values():
            layers.without_hooks(module)
        for path, layer in self._layers.items():
            self._net.set_submodule(path, layer)
        if self._folded:
            warnings.warn(
                f"weights of {_listed(self._folded)} are computed from others: they are folded to "
                "their present values, and training may move each by itself",
                stacklevel=2,
            )
        if noted:
            warnings.warn(
                f"forward hooks of {_listed(noted)} were called while the network was traced: what "
                "they change is kept, and they are not called again",
                stacklevel=2,
            )
        return bool(self._layers or hooked)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(repr(path) if path else "the network itself" for path in paths[:3]) + more
