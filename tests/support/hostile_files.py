"""Damaged and hostile bundles and checkpoints, whose digests fit: they reach the inner checks.

`damaged_bundle` and `damaged_checkpoint` change one thing at random in a sound file. Of
`HOSTILE_BUNDLES` and `HOSTILE_CHECKPOINTS`, each makes a file of about so many bytes that asks for
as much work or memory as it can. All of them draw from the `random.Random` that they are given.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Tensor = tuple[str, list[int], bytes]  # type, shape, little-endian values
Hostile = Callable[[random.Random, int], bytes]  # bytes that the file has, roughly


@dataclass
class Parts:
    """A safetensors file taken apart: its entry `fracskip`, as JSON, and its tensors.

    Both may be changed before `bundle` or `checkpoint` puts them together again.
    """

    plan: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """Takes a file apart."""
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        plan = json.loads(header.pop("__metadata__")["fracskip"])
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], body[begin:end])
        return cls(plan, tensors)

    @property
    def network(self) -> dict[str, Any]:
        """Of a bundle's plan."""
        network: dict[str, Any] = self.plan["network"]
        return network

    def values(self, name: str, values: list[float], dtype: str = "<f4") -> None:
        """Overwrites a tensor's first values; of type '<f4' or 'i1'."""
        kind, shape, data = self.tensors[name]
        new = struct.pack(f"<{len(values)}{'f' if dtype == '<f4' else 'b'}", *values)
        self.tensors[name] = kind, shape, new + data[len(new) :]

    def as_version_3(self) -> Parts:
        """Writes a bundle's plan as version 3 did: of each window, a padding of both sides."""
        for part in self.network["parts"]:
            for op in (*part["branch"], *part["shortcut"]):
                if "padding" in op:
                    assert op["padding"][:2] == op["padding"][2:]
                    op["padding"] = op["padding"][:2]
        self.plan["version"] = 3
        return self

    def bundle(self) -> bytes:
        """A bundle with a digest that fits."""
        return sealed_bundle(json.dumps(self.plan), self.tensors)

    def checkpoint(self) -> bytes:
        """A checkpoint with a digest that fits."""
        return sealed_checkpoint(self.plan, self.tensors)


def raw(meta: Mapping[str, str], tensors: Mapping[str, Tensor], more: str = "") -> bytes:
    """A safetensors file.

    Args:
        meta: Its metadata.
        tensors: Its tensors, in the order of their bytes.
        more: JSON that is put behind the last entry of its header.
    """
    header: dict[str, Any] = {"__metadata__": meta, **_entries(tensors)}
    head = (json.dumps(header)[:-1] + more + "}").encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(data for *_, data in tensors.values())


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    entries, place = {}, 0
    for name, (kind, shape, data) in tensors.items():
        ends = [place, place + len(data)]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": ends}
        place = ends[1]
    return entries


def sealed_bundle(plan: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A bundle with a digest that fits (docs/bundle.md). The plan may be any text."""
    total = hashlib.sha256(plan.encode() + b"\n")
    for *_, data in tensors.values():
        total.update(data)
    for name, entry in sorted(_entries(tensors).items()):
        begin, end = entry["data_offsets"]
        total.update(f"\n{name} {entry['dtype']} {entry['shape']} {begin} {end}".encode())
    return raw({"fracskip": plan, "digest": f"sha256:{total.hexdigest()}"}, tensors)


_TORCH_TYPES = {
    "F32": "torch.float32",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "I8": "torch.int8",
}


def sealed_checkpoint(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """A checkpoint with a digest that fits.

    Args:
        head: 'schema', 'version' and 'meta'; a digest in it is replaced.
        tensors: Its tensors.
    """
    head = {key: value for key, value in head.items() if key != "digest"}
    total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, (kind, shape, data) in sorted(tensors.items()):
        total.update(f"\n{name} {_TORCH_TYPES[kind]} {tuple(shape)}\n".encode() + data)
    digest = f"sha256:{total.hexdigest()}"
    return raw({"fracskip": json.dumps({**head, "digest": digest}, sort_keys=True)}, tensors)


# -- one thing changed ----------------------------------------------------------------------------

_VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 255, 65535, 65536, 2**31, 2**31 + 1, 2**63, 10**40, -0.5, 1e-45, 1e38,
    1e300, "", "full", "skip", "8", "x" * 300, [], [0], [1, 1], [65535, 65535], {}, {"a": 1},
]  # fmt: skip
_NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("nan"), 127.0, 256.0]


def damaged_bundle(draw: random.Random, sound: bytes) -> bytes:
    """A sound bundle with one thing changed in its plan, its tensors or its bytes."""
    return _damaged(draw, sound, Parts.bundle)


def damaged_checkpoint(draw: random.Random, sound: bytes) -> bytes:
    """A sound checkpoint with one thing changed in its spec, its tensors or its bytes."""
    return _damaged(draw, sound, Parts.checkpoint)


def _damaged(draw: random.Random, sound: bytes, join: Callable[[Parts], bytes]) -> bytes:
    kind = draw.choice(["bytes", "plan", "plan", "plan", "tensor", "tensor", "names"])
    if kind == "bytes":
        return damaged_bytes(draw, sound)
    parts = Parts.of(sound)
    name = draw.choice(list(parts.tensors))
    dtype, shape, data = parts.tensors[name]
    if kind == "plan":
        change_tree(draw, parts.plan)
    elif kind == "names":
        parts.tensors[draw.choice(["more", name + "0", *parts.tensors])] = parts.tensors.pop(name)
    elif dtype == "F32":
        at = 4 * draw.randrange(max(1, len(data) // 4))
        value = struct.pack("<f", draw.choice(_NUMBERS))
        parts.tensors[name] = dtype, shape, data[:at] + value + data[at + 4 :]
    else:
        at = draw.randrange(max(1, len(data)))
        parts.tensors[name] = dtype, shape, data[:at] + draw.randbytes(1) + data[at + 1 :]
    return join(parts)


def damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes that are cut short, made longer, or changed in one place."""
    at = draw.randrange(len(data))
    noise = draw.randbytes(draw.choice([1, 1, 4, 100]))
    return draw.choice(
        [data[:at], data + noise, data[:at] + noise + data[at + len(noise) :], data[at:]]
    )


def change_tree(draw: random.Random, tree: Any) -> None:
    """Changes one value, or one key, somewhere in a JSON value."""
    while True:
        inner = tree.values() if isinstance(tree, dict) else tree
        deeper = [value for value in inner if isinstance(value, dict | list) and value]
        if not deeper or draw.random() < 0.2:
            break
        tree = draw.choice(deeper)
    key = draw.choice(list(tree)) if isinstance(tree, dict) else draw.randrange(len(tree))
    change = draw.choice(["value", "value", "value", "remove", "add"])
    if change == "value":
        tree[key] = draw.choice(_VALUES)
    elif change == "remove":
        del tree[key]
    elif isinstance(tree, dict):
        tree["colour"] = draw.choice(_VALUES)
    else:
        tree.insert(key, draw.choice([tree[key], *_VALUES]))


# -- as much as possible --------------------------------------------------------------------------

OPTIONS = ["skip", *map(str, range(2, 17)), "full"]


def small_plan(parts: list[Any], options: list[str]) -> dict[str, Any]:
    """A plan for an image of 8 x 8 pixels and two classes."""
    gate = {"kind": "recurrent", "width": 1, "budget_input": False, "output": "logit"}
    priced = [
        {"name": part["name"], "branch_macs": 1, "shortcut_macs": 0, "gate_macs": 0, "gated": True,
         "fixed_bits": 32}
        for part in parts
        if part["gated"]
    ]  # fmt: skip
    cost = {"stem_macs": 1, "head_macs": 1, "stem_bits": 32, "head_bits": 32, "blocks": priced}
    return {
        "schema": "fracskip.bundle",
        "version": 4,
        "name": "hostile",
        "source": "",
        "data_name": "",
        "class_names": ["0", "1"],
        "image": {"size": [8, 8], "channels": 1, "mean": [0.0], "std": [1.0]},
        "options": options,
        "stream": "float",
        "cost": cost,
        "network": {"classes": 2, "parts": parts},
        "gate": gate if len(options) > 1 else None,
        "operating_points": {
            "target": None,
            "multiplier": 0.0,
            "multiplier_curve": [],
            "cascade": [],
        },
    }


def conv_op(taken: int, channels: tuple[int, int], act: str = "none") -> dict[str, Any]:
    """A convolution of single pixels."""
    return {
        "op": "conv", "in": [taken], "channels": list(channels), "kernel": [1, 1], "stride": [1, 1],
        "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "act": act,
    }  # fmt: skip


def pool_op(taken: int) -> dict[str, Any]:
    """A max pool of single pixels."""
    return {
        "op": "pool", "in": [taken], "kind": "max", "kernel": [1, 1], "stride": [1, 1],
        "padding": [0, 0, 0, 0], "count_padding": False,
    }  # fmt: skip


def plain_part(name: str, options: list[str], branch: list[Any], gated: bool) -> dict[str, Any]:
    """A part without a residual sum."""
    return {
        "name": name, "gated": gated, "options": options, "residual": False,
        "skip_is_identity": False, "branch": branch, "shortcut": [], "shortcut_option": None,
        "after": [],
    }  # fmt: skip


def act_op(taken: int) -> dict[str, Any]:
    """A ReLU by itself: it needs no tensors."""
    return {"op": "act", "in": [taken], "act": "relu"}


def stem_part() -> dict[str, Any]:
    """A first part that needs no tensors."""
    return plain_part("stem", ["full"], [act_op(0)], False)


def head_part() -> dict[str, Any]:
    """The mean of one channel, and two logits."""
    return plain_part("head", ["full"], [{"op": "mean", "in": [0]}, conv_op(1, (1, 2))], False)


def chain(options: list[str], *branches: list[Any]) -> dict[str, Any]:
    """A plan of a stem, gated parts of these branches (block0, block1, ...), and a head."""
    gated = [plain_part(f"block{k}", options, ops, True) for k, ops in enumerate(branches)]
    return small_plan([stem_part(), *gated, head_part()], options)


def unsealed(plan: dict[str, Any]) -> bytes:
    """A bundle of a plan without its tensors."""
    return sealed_bundle(json.dumps(plan), {})


def conv_tensors(name: str, taken: int, given: int, bits: int, inner: bool) -> dict[str, Tensor]:
    """What a convolution of single pixels needs at a width; `inner`: its input are levels."""
    ones = struct.pack("<f", 1.0)
    table = {f"{name}.bias": ("F32", [given], bytes(4 * given))}
    if not bits:
        table[f"{name}.weight"] = ("F32", [given, 1, 1, taken], ones * given * taken)
        return table
    table[f"{name}.weight"] = ("I8", [given, 1, 1, taken], b"\1" * given * taken)
    table[f"{name}.scale"] = ("F32", [given], ones * given)
    if not inner:
        table[f"{name}.input"] = ("F32", [1], ones)
    return table


def gate_tensors(blocks: int, options: int) -> dict[str, Tensor]:
    """What a recurrent gate of width 1 over blocks of one channel needs."""
    shapes = {"lstm.weight_ih": [4, 1], "lstm.weight_hh": [4, 1], "lstm.bias": [4]}
    shapes |= {"out.weight": [options, 1], "out.bias": [options]}
    for index in range(blocks):
        shapes |= {f"embed.{index}.weight": [1, 1], f"embed.{index}.bias": [1]}
    return {f"gate.{name}": ("F32", shape, bytes(4 * shape[0])) for name, shape in shapes.items()}


def chain_bundle(branch: list[Any], options: list[str]) -> bytes:
    """A sound bundle of one gated part: a branch of convolutions and pools of one channel."""
    tensors = conv_tensors("parts.2.full.1", 1, 2, 0, False)
    for label in options:
        bits = int(label) if label.isdecimal() and int(label) <= 8 else 0
        for position, op in enumerate(branch):
            if op["op"] == "conv" and label != "skip":
                inner = bool(position) and branch[position - 1]["op"] == "conv"
                name = f"parts.1.{label}.{position}"
                tensors |= conv_tensors(name, 1, 1, bits, inner)
    tensors |= gate_tensors(1, len(options))
    # Floats first, so that they lie at multiples of four bytes.
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][0] != "F32"))
    return sealed_bundle(json.dumps(chain(options, branch)), ordered)


def many_pools(count: int) -> bytes:
    """A sound bundle: a convolution, so many pools, and one that takes integers."""
    pools = [pool_op(index + 1) for index in range(count)]
    branch = [conv_op(0, (1, 1)), *pools, conv_op(count + 1, (1, 1))]
    return chain_bundle(branch, ["4", "full"])


def many_convolutions(count: int) -> bytes:
    """A sound bundle: so many convolutions, one after the other, at seven options."""
    branch = [conv_op(index, (1, 1), "relu") for index in range(count)]
    return chain_bundle(branch, ["2", "3", "4", "5", "6", "8", "full"])


def _plan_of(**changes: Any) -> bytes:
    return unsealed({**small_plan([head_part()], ["full"]), **changes})


def _repeated(part: str, size: int) -> str:
    return ",".join([part] * (size // (len(part) + 1)))


def _many_acts(draw: random.Random, size: int) -> bytes:
    """Operations that need no tensor, in as many parts as there may be."""
    parts, space, index = [], size, 0
    while space > 0 and len(parts) < 4095:
        parts.append(plain_part(f"p{index}", ["full"], [act_op(k) for k in range(4000)], False))
        space, index = space - 45 * 4000, index + 1
    return unsealed(small_plan([*parts, head_part()], ["full"]))


def _many_options(draw: random.Random, size: int) -> bytes:
    """Convolutions at all options, without their tensors."""
    convs = [conv_op(k, (1, 1), "relu") for k in range(4096)]
    return unsealed(chain(OPTIONS[1:], *[convs] * max(1, min(3, size // 700_000))))


def _many_tensors(draw: random.Random, size: int) -> bytes:
    tensors: dict[str, Tensor] = {str(k): ("F32", [0], b"") for k in range(size // 62)}
    return sealed_bundle(json.dumps(small_plan([head_part()], ["full"])), tensors)


def _many_classes(draw: random.Random, size: int) -> bytes:
    names = ["x"] * (size // 7)
    network = {"classes": len(names), "parts": [head_part()]}
    return _plan_of(class_names=names, network=network)


def _in_header(text: str) -> bytes:
    return raw({"fracskip": "{}", "digest": ""}, {}, f',"a":{text}')


HOSTILE_BUNDLES: dict[str, Hostile] = {
    "zeros": lambda draw, size: bytes(size),
    "noise": lambda draw, size: draw.randbytes(size),
    "opcodes of a pickle": lambda draw, size: b"(" * size,
    "many operations": _many_acts,
    "many options": _many_options,
    "many tensors": _many_tensors,
    "many classes": _many_classes,
    "many errors": lambda draw, size: _plan_of(class_names=[0] * (size // 4)),
    "many unknown keys": lambda draw, size: _plan_of(
        **{f"{k:x}": 0 for k in range(10**6, 10**6 + size // 14)}
    ),
    "many keys within": lambda draw, size: _plan_of(
        gate={f"{k:x}": 0 for k in range(10**6, 10**6 + size // 14)}
    ),
    "many labels": lambda draw, size: _plan_of(options=["8"] * (size // 7)),
    "many points": lambda draw, size: _plan_of(
        operating_points={
            "target": None,
            "multiplier": 0.0,
            "multiplier_curve": [[1.0, 0.0]] * (size // 12),
            "cascade": [],
        }
    ),
    "deep header": lambda draw, size: _in_header("[" * size),
    "deep plan": lambda draw, size: sealed_bundle("[" * size, {}),
    "objects within objects": lambda draw, size: sealed_bundle('{"a":' * (size // 9), {}),
    "lists in the header": lambda draw, size: _in_header(f"[{_repeated('[]', size)}]"),
    "lists in the plan": lambda draw, size: sealed_bundle(f"[{_repeated('[]', size)}]", {}),
    "objects in the header": lambda draw, size: _in_header(f"[{_repeated('{}', size)}]"),
    "digits": lambda draw, size: _in_header("1" * size),
    "long numbers": lambda draw, size: _in_header(f"[{_repeated('1' * 4000, size)}]"),
    "a long name": lambda draw, size: _plan_of(name="x" * size),
    "a long stream": lambda draw, size: _plan_of(stream="x" * size),
    "a long schema": lambda draw, size: _plan_of(schema="x" * size),
    "a long option": lambda draw, size: _plan_of(options=["x" * size]),
    "a long type": lambda draw, size: _in_header(
        f'{{"dtype":"{"x" * size}","shape":[1],"data_offsets":[0,4]}}'
    ),
    "a long tensor's name": lambda draw, size: sealed_bundle(
        json.dumps(small_plan([head_part()], ["full"])), {"x" * size: ("F32", [1], bytes(4))}
    ),
    "a long shape": lambda draw, size: _in_header(
        f'{{"dtype":"F32","shape":[{_repeated("1", size)}],"data_offsets":[0,4]}}'
    ),
}


def spec_tree(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"name": "resnet8"},
        "options": ["skip", "4", "full"],
        "quant": {},
        "gate": {"width": 4},
        "image": {"size": [8, 8]},
        "class_names": ["0", "1"],
        "data_name": "",
        **changes,
    }


def spec_file(size: int = 0, notes: Any = None, **changes: Any) -> bytes:
    """A checkpoint of a spec with changes, and one tensor that fills the file."""
    meta = {"spec": spec_tree(**changes), "notes": notes or {}}
    data = bytes(max(4, size) // 4 * 4)
    head = {"schema": "fracskip.checkpoint", "version": 1, "meta": meta}
    return sealed_checkpoint(head, {"a": ("F32", [len(data) // 4], data)})


def _many_tensors_saved(draw: random.Random, size: int) -> bytes:
    head = {
        "schema": "fracskip.checkpoint",
        "version": 1,
        "meta": {"spec": spec_tree(), "notes": {}},
    }
    return sealed_checkpoint(head, {str(k): ("F32", [0], b"") for k in range(size // 62)})


HOSTILE_CHECKPOINTS: dict[str, Hostile] = {
    "zeros": lambda draw, size: bytes(size),
    "noise": lambda draw, size: draw.randbytes(size),
    "opcodes of a pickle": lambda draw, size: b"(" * size,
    "a wide gate": lambda draw, size: spec_file(size, gate={"width": 60000}),
    "a wide feedforward gate": lambda draw, size: spec_file(
        size, gate={"kind": "feedforward", "width": 60000}
    ),
    "a large image": lambda draw, size: spec_file(size, image={"size": [100000, 100000]}),
    "a large view": lambda draw, size: spec_file(size, image={"size": [8, 9], "resize": 60000}),
    "a deep network": lambda draw, size: spec_file(size, model={"name": "resnet1202"}),
    "a deep network at all widths": lambda draw, size: spec_file(
        size, model={"name": "resnet1202"}, options=OPTIONS, quant={"weights": "per_option"}
    ),
    "many classes": lambda draw, size: spec_file(class_names=["x"] * (size // 7)),
    "a million classes": lambda draw, size: spec_file(class_names=["x"] * 10**6),
    "many errors": lambda draw, size: spec_file(class_names=[0] * (size // 4)),
    "many unknown keys": lambda draw, size: spec_file(
        image={f"{k:x}": 0 for k in range(10**6, 10**6 + size // 14)}
    ),
    "many labels": lambda draw, size: spec_file(options=["8"] * (size // 7)),
    "many blocks": lambda draw, size: spec_file(
        model={"name": "resnet8", "blocks": ["x"] * (size // 7)}
    ),
    "many points": lambda draw, size: spec_file(
        curve=[[(k + 1) / size, float(k)] for k in range(size // 40)]
    ),
    "many tensors": _many_tensors_saved,
    "many notes": lambda draw, size: spec_file(notes={"a": [{}] * (size // 4)}),
    "deep notes": lambda draw, size: raw({"fracskip": "[" * size}, {}),
    "a long name": lambda draw, size: spec_file(model={"name": "x" * size}),
    "a long library": lambda draw, size: spec_file(model={"name": "x" * size + "/a"}),
    "a long option": lambda draw, size: spec_file(options=["x" * size]),
    "a long schema": lambda draw, size: sealed_checkpoint(
        {"schema": "x" * size, "version": 1, "meta": {}}, {}
    ),
    "a deep header": lambda draw, size: _in_header("[" * size),
    "lists in the header": lambda draw, size: _in_header(f"[{_repeated('[]', size)}]"),
}
