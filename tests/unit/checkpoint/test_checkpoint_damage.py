"""Whatever is wrong with a file: a CheckpointError of one line, and nothing executed."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fracskip import checkpoint
from fracskip.checkpoint import load, read_package, write_package
from fracskip.errors import CheckpointError

Meta = dict[str, Any]
Tensors = dict[str, torch.Tensor]
QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one file, written anew
)


@pytest.fixture
def rewritten(checkpoint_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny checkpoint, edited and written again with a digest that fits."""

    def rewrite(edit: Callable[[Meta, Tensors], None]) -> Path:
        package = read_package(checkpoint_file, checkpoint.SCHEMA)
        edit(package.meta, package.tensors)
        path = tmp_path / "edited.safetensors"
        write_package(path, checkpoint.SCHEMA, package.meta, package.tensors)
        return path

    return rewrite


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_fixture_itself_is_sound(rewritten: Callable[..., Path]) -> None:
    assert load(rewritten(lambda meta, tensors: None)).spec.model.name == "resnet8"


# -- tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    ["backbone.fc.bias", "gate.out.bias", "backbone.layer2.0.conv1.quantiser.weight_step"],
)
def test_values_that_are_not_finite(
    rewritten: Callable[..., Path], name: str, value: float
) -> None:
    def spoil(meta: Meta, tensors: Tensors) -> None:
        tensors[name].view(-1)[:2] = value

    refused(rewritten(spoil), rf"{name} has 2 values that are NaN or infinite; train again")


def test_a_value_too_large_for_the_networks_type(rewritten: Callable[..., Path]) -> None:
    def spoil(meta: Meta, tensors: Tensors) -> None:
        tensors["backbone.fc.bias"] = torch.full((3,), 1e300, dtype=torch.float64)

    refused(rewritten(spoil), "fc.bias has 3 values that are NaN or infinite")


def test_a_missing_tensor(rewritten: Callable[..., Path]) -> None:
    path = rewritten(lambda meta, tensors: tensors.pop("backbone.fc.bias"))
    refused(path, r"does not fit the network: tensors 1 missing \(backbone\.fc\.bias\); check")


def test_a_surplus_tensor(rewritten: Callable[..., Path]) -> None:
    path = rewritten(lambda meta, tensors: tensors.update(extra=torch.ones(1)))
    refused(path, r"tensors 1 surplus \(extra\); check the model's name, options and gate")


def test_many_missing_tensors_are_counted_not_listed(rewritten: Callable[..., Path]) -> None:
    def spoil(meta: Meta, tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("gate.")]:
            del tensors[name]
        tensors["gates.out"] = torch.ones(1)

    refused(rewritten(spoil), r"\d+ missing \((gate\.\S+, ){3}\.\.\.\) and 1 surplus \(gates\.out")


def test_a_tensor_of_another_shape(rewritten: Callable[..., Path]) -> None:
    def spoil(meta: Meta, tensors: Tensors) -> None:
        tensors["backbone.fc.bias"] = torch.zeros(1, 3)  # would broadcast

    refused(rewritten(spoil), r"fc\.bias has shape \(1, 3\), the network needs \(3,\)")


# -- metadata -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda spec: spec.update(options=["skip", 99]), "options.*99"),
        (lambda spec: spec.update(options=[]), "options.*at least one"),
        (lambda spec: spec.update(model={"name": "resnet9"}), "model 'resnet9' is unknown"),
        (lambda spec: spec.update(colour="red"), "unknown key 'colour'"),
        (lambda spec: spec.pop("class_names"), "class_names is missing"),
        (lambda spec: spec["image"].update(std=[0, 1, 1]), "image.std"),
        (lambda spec: spec["image"].update(mean=[0.5]), "mean and std need 3 values each"),
        (lambda spec: spec["gate"].update(kind="oracle"), "gate.kind"),
        (lambda spec: spec.update(target=0.1), "unknown key 'target'"),
    ],
)
def test_a_spec_that_describes_no_network(
    rewritten: Callable[..., Path], edit: Callable[[Meta], None], match: str
) -> None:
    refused(rewritten(lambda meta, tensors: edit(meta["spec"])), f"describes no network: .*{match}")


@pytest.mark.parametrize(
    ("points", "match"),
    [({"target": 2}, "target"), ({"lean": 1}, "unknown key 'lean'"), ("0.1", "valid dictionary")],
)
def test_operating_points_that_are_none(
    rewritten: Callable[..., Path], points: Any, match: str
) -> None:
    refused(
        rewritten(lambda meta, tensors: meta.update(operating_points=points)),
        f"describes no network: .*{match}",
    )


@pytest.mark.parametrize("spec", [None, 7, [], "resnet8", {}])
def test_no_spec_at_all(rewritten: Callable[..., Path], spec: object) -> None:
    refused(rewritten(lambda meta, tensors: meta.update(spec=spec)), "describes no network")


@pytest.mark.parametrize("notes", [None, 7, [1, 2], "words"])
def test_notes_that_are_no_table(rewritten: Callable[..., Path], notes: object) -> None:
    refused(rewritten(lambda meta, tensors: meta.update(notes=notes)), "describes no network")


def test_another_schema(tmp_path: Path) -> None:
    write_package(tmp_path / "x", "fracskip.training-state", {}, {"a": torch.ones(1)})
    refused(
        tmp_path / "x",
        r"is 'fracskip.training-state' version 2; this fracskip reads 'fracskip.checkpoint' "
        r"versions 1 to 2: use the fracskip that wrote it, or train again",
    )


def test_another_version(
    monkeypatch: pytest.MonkeyPatch, checkpoint_file: Path, tmp_path: Path
) -> None:
    package = read_package(checkpoint_file, checkpoint.SCHEMA)
    monkeypatch.setattr(checkpoint.package, "VERSION", 3)
    write_package(tmp_path / "x", checkpoint.SCHEMA, package.meta, package.tensors)
    monkeypatch.undo()
    refused(
        tmp_path / "x",
        r"'fracskip.checkpoint' version 3; .* versions 1 to 2: use the fracskip that",
    )


def test_plain_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    refused(tmp_path / "plain.safetensors", "plain safetensors file without .*backbone.load")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "foreign.safetensors", "plain safetensors file without")


@pytest.mark.parametrize(
    "text",
    ["", "{", "7", "[]", "null", "{}", '{"schema": 1}', '{"digest": "x"}', "[" * 100_000],
)
def test_metadata_that_is_no_fracskip_metadata(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"fracskip": text})
    refused(path, "has damaged metadata; copy it again")


@pytest.mark.parametrize("meta", [7, [1], "words", None])
def test_meta_that_is_no_table(tmp_path: Path, meta: object) -> None:
    path = tmp_path / "x.safetensors"
    head = {"schema": checkpoint.SCHEMA, "version": 2, "meta": meta}
    head["digest"] = checkpoint.package._digest(
        json.dumps(head, sort_keys=True), {"a": torch.ones(2)}
    )
    text = json.dumps(head, sort_keys=True)
    save_file({"a": torch.ones(2)}, path, metadata={"fracskip": text})
    refused(path, "has damaged metadata; copy it again")


# -- bytes ----------------------------------------------------------------------------------------


def test_a_path_that_holds_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "does not exist; give a .safetensors file or one of: b")
    refused(tmp_path, "cannot be read: Is a directory")
    refused(tmp_path / ("x" * 300), "cannot be read: File name too long")


def test_truncated_files(checkpoint_file: Path, tmp_path: Path) -> None:
    data = checkpoint_file.read_bytes()
    header = int.from_bytes(data[:8], "little")
    cuts = [0, 1, 7, 8, 9, 100, 8 + header // 2, 7 + header, 8 + header, len(data) // 2]
    for length in [*cuts, len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        refused(tmp_path / "cut", "is no complete safetensors file|is damaged")
    (tmp_path / "cut").write_bytes(data)
    assert load(tmp_path / "cut").digest


def test_bytes_after_the_end(checkpoint_file: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(checkpoint_file.read_bytes() + b"\0")
    refused(tmp_path / "long", "is damaged")


@pytest.mark.parametrize("size", [1 << 25, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_huge_header_is_not_believed(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(size.to_bytes(8, "little") + b"{}" * 50)
    refused(tmp_path / "x", "is no complete safetensors file .108 bytes.")


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_no_table(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "x", "damaged header")


@given(st.binary(max_size=200))
@QUICK
@example(b"")
@example(b".")
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_arbitrary_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_in_any_byte_is_refused(tmp_path: Path) -> None:
    """Of every byte a bit in turn, and bit 5: it turns 1e-05 and \\u00e9 into 1E-05 and \\u00E9."""
    path = tmp_path / "small"
    meta = {"lr": 1e-05, "name": "é", "flag": True, "list": [0, 1.5]}
    tensors = {"a": torch.arange(3.0), "b.c": torch.tensor([1, 2]), "d": torch.zeros(0)}
    write_package(path, "s", meta, tensors)
    data = path.read_bytes()
    assert read_package(path, "s").meta == meta
    survivors = []
    bits = {8 * byte + bit for byte in range(len(data)) for bit in (5, byte % 8)}
    for bit in sorted(bits):
        path.write_bytes(flipped(data, bit))
        try:
            read_package(path, "s")
        except CheckpointError:
            continue
        survivors.append((bit // 8, bit % 8, data[max(0, bit // 8 - 20) : bit // 8 + 20]))
    assert not survivors


@given(st.data())
@QUICK
def test_any_flipped_bit_of_a_checkpoint_is_refused(
    checkpoint_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = checkpoint_file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    in_header = data.draw(st.booleans(), label="in the header")
    low, high = (0, header) if in_header else (header, len(content))
    bit = data.draw(st.integers(8 * low, 8 * high - 1), label="bit")
    (tmp_path / "flipped").write_bytes(flipped(content, bit))
    refused(tmp_path / "flipped")


# -- pickles --------------------------------------------------------------------------------------


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_refused_by_name_and_run_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "executed"
    data = pickle.dumps({"weights": Payload(trace)}, protocol)
    pickle.loads(data)["weights"].close()
    trace.unlink()  # the payload works ...

    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    refused(path, "is a pickle .*never loads one.* save the state as safetensors")
    with pytest.raises(CheckpointError, match="is a pickle"):
        checkpoint.load_backbone(path, torch.nn.Linear(1, 1))
    assert not trace.exists()  # ... and is not run


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_refused(tmp_path: Path, zipped: bool) -> None:
    stream = io.BytesIO()
    state = {"w": torch.ones(3)}
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    (tmp_path / "model.pt").write_bytes(stream.getvalue())
    refused(tmp_path / "model.pt", "is a pickle .as torch.save writes them.")
