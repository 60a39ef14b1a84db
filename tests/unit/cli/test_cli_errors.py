"""A user's mistake: exit code 2 and one line. Our own: exit code 1 and a traceback."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fracskip.checkpoint import package
from fracskip.cli import commands
from fracskip.errors import CheckpointError

Run = Callable[..., Any]  # conftest.Answer


# -- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND (see fracskip --help)"),
        (["dance"], "invalid choice: 'dance'"),
        (["--loud"], "the following arguments are required: COMMAND"),
        (["train"], "--model and --data missing: give a recipe, or --model and --data to train wi"),
        (["train", "--model", "resnet8"], "--data missing: give a recipe, or --model and --data"),
        (["train", "r.toml", "--size", "64"], "a recipe says all of a run, --size is for a run wi"),
        (
            ["train", "--model", "m", "--data", "d", "--budget", "0.1,0.05"],
            "argument --budget: '0.1,0.05' is given, a share or the smallest and the largest are",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--epochs", "5,1"],
            "argument --epochs: '5,1' is given, one number or three are needed: 25 or 25,3,6",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--budget", "0"],
            "argument --budget: '0' is giv",
        ),
        (["train", "--model", "resnet8", "--data", "cifar10"], "the network has no weights: give"),
        (["train", "r.toml", "--set"], "argument --set: expected at least one argument"),
        (["train", "r.toml", "more.toml"], "unrecognized arguments: more.toml"),
        (["eval", "bundled"], "the following arguments are required: --data"),
        (["eval", "bundled", "--data", "sample", "--limit", "0"], "'0' is given, a whole number"),
        (["eval", "bundled", "--data", "sample", "--limit", "-3"], "'-3' is given"),
        (["eval", "bundled", "--data", "sample", "--examples", "-1"], "a whole number from 0"),
        (["eval", "bundled", "--data", "sample", "--limit", "2.5"], "'2.5' is given"),
        (["eval", "bundled", "--data", "sample", "--limit", "many"], "'many' is given"),
        (["eval", "bundled", "--data", "sample", "--split", "dev"], "invalid choice: 'dev'"),
        (["predict", "bundled"], "the following arguments are required: IMAGE"),
        (["report"], "the following arguments are required: RUN_OR_RECORD"),
        (["data"], "the following arguments are required: NAME"),
        (["doctor", "a.fsk", "now\nplease"], "unrecognized arguments: now please"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_bad_usage(fracskip: Run, words: list[str], message: str) -> None:
    answer = fracskip(*words)
    assert message in answer.error
    assert answer.out == ""


# -- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\ncolour = "red"', "r.toml: unknown key 'colour'"),
        ('name = "x"\n[joint]\ntraget = 0.1', "r.toml: unknown key 'joint.traget'"),
        ("seed = 1", "r.toml: name is missing"),
        ('name = "../x"', "r.toml: name: "),
        ('name = "x"\noptions = ["skip", 1]', "options: option 1 is unknown"),
        ('name = "x"\n[joint]\ntarget = 2', "joint.target: "),
        ('name = "x"\n[gate]\nkind = "oracle"', "gate.kind: "),
        ("name = ", "r.toml is not valid TOML"),
    ],
)
def test_bad_recipes(fracskip: Run, text: str, message: str) -> None:
    Path("r.toml").write_text(text)
    answer = fracskip("train", "r.toml")
    assert message in answer.error
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", [["gone.toml"], ["."]])
def test_no_recipe(fracskip: Run, words: list[str]) -> None:
    assert f"recipe {words[0]} " in fracskip("train", *words).error


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("joint", "--set takes key=value, such as joint.epochs=4; got 'joint'"),
        ("=4", "--set takes key=value"),
        ("name.first=4", "'name' is a value, not a table"),
        ("joint.epochs=many", "joint.epochs: Input should be a valid integer"),
        ("joint.epochs=-1", "joint.epochs: "),
        ("joint.ecophs=4", "unknown key 'joint.ecophs'"),
        ("data.name=cifar11", "data set 'cifar11' is unknown: use one of cifar10, "),
        ("data.name=cifar10", "data set cifar10 is not in the cache"),
        ("data.name=folder:gone", "image folder gone cannot be read"),
        ("model.name=resnet9", "model 'resnet9' is unknown: use resnetD with D = 6n + 2"),
        ("backbone.load=gone", "gone does not exist"),
        ("backbone.epochs=0", "backbone.epochs is 0 and backbone.load is empty"),
        ("data.validation=47", "47 validation images cannot be carved"),
    ],
)
def test_bad_settings(fracskip: Run, recipe: Path, assignment: str, message: str) -> None:
    assert message in fracskip("train", recipe, "--set", assignment).error


def test_the_cache_says_how_to_fill_it(fracskip: Run, recipe: Path) -> None:
    answer = fracskip("train", recipe, "--set", "data.name=cifar10")
    assert answer.error.endswith(": run `fracskip data cifar10`")


def test_nothing_to_resume(fracskip: Run, recipe: Path) -> None:
    error = fracskip("train", recipe, "--resume").error
    assert error == "runs/tiny holds no run to resume: start it without --resume"


def test_a_full_disk_amid_training(
    fracskip: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier epochs have said their line; then there is one line for the error."""
    writes = []
    write = package.write_atomically

    def fills(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == 3:
            raise CheckpointError(f"{path} could not be written (No space left)")
        write(path, data)

    monkeypatch.setattr(package, "write_atomically", fills)
    threads = f"runtime.threads={torch.get_num_threads()}"
    answer = fracskip("train", recipe, "--set", "backbone.epochs=3", threads)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    *before, last = answer.err.splitlines()
    assert [line.split(":")[0] for line in before] == ["backbone 1"]
    assert (
        last == "fracskip: error: runs/tiny/state.safetensors could not be written (No space left)"
    )
    assert fracskip("train", recipe, "--set", "backbone.epochs=3", threads).error


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(params=["gone", "empty", "pickle", "torch", "plain", "flipped", "folder"])
def bad_checkpoint(request: pytest.FixtureRequest, checkpoint_file: Path) -> tuple[str, str]:
    path = Path("bad.safetensors")
    data = checkpoint_file.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 16
    match request.param:
        case "gone":
            return "gone.safetensors", "does not exist"
        case "folder":
            path.mkdir()
            return str(path), "Is a directory"
        case "empty":
            path.write_bytes(b"")
            return str(path), "is no complete safetensors file"
        case "pickle":
            path.write_bytes(pickle.dumps({"w": 1}, 0))
            return str(path), "is a pickle"
        case "torch":
            torch.save({"w": torch.ones(1)}, path)
            return str(path), "is a pickle"
        case "plain":
            from safetensors.torch import save_file

            save_file({"w": torch.ones(1)}, path)
            return str(path), "is a plain safetensors file"
        case _:
            path.write_bytes(flipped)
            return str(path), "does not match its digest"


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_bad_checkpoints(
    fracskip: Run, bad_checkpoint: tuple[str, str], command: str, pictures: Path
) -> None:
    name, message = bad_checkpoint
    rest = ("--data", f"folder:{pictures}") if command == "eval" else (pictures,)
    error = fracskip(command, name, *rest).error
    assert name in error
    assert message in error


# -- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "data set 'cifar11' is unknown: use one of cifar10, cifar100, fashion-mnist"),
        ("cifar10", "data set cifar10 is not in the cache"),
        ("folder:gone", "image folder gone cannot be read at gone/test or"),
        ("sample", "sample has the classes airplane, automobile, bird, cat, ... (10 in all), the "),
    ],
)
def test_bad_data(fracskip: Run, checkpoint_file: Path, name: str, message: str) -> None:
    assert message in fracskip("eval", checkpoint_file, "--data", name).error


def test_other_classes(fracskip: Run, checkpoint_file: Path) -> None:
    for split in ("train", "val"):
        for name in ("blue", "red"):
            Path("pets", split, name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(Path("pets", split, name, "1.png"))
    assert fracskip("eval", checkpoint_file, "--data", "folder:pets").error == (
        "folder:pets has the classes blue, red, the network was trained for blue, green, red: "
        "give a data set with the same classes (it lacks green)"
    )


def test_a_corrupt_image_in_a_set(fracskip: Run, checkpoint_file: Path) -> None:
    for split in ("train", "val"):
        Path("pets", split, "red").mkdir(parents=True)
        Path("pets", split, "red", "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    error = fracskip("eval", checkpoint_file, "--data", "folder:pets").error
    assert error.startswith("1 of 1 images in pets/val cannot be used: image pets/val/red/1.png")


def test_bad_images(fracskip: Run, checkpoint_file: Path) -> None:
    Path("empty").mkdir()
    Path("text.png").write_text("no image")
    for name, message in (
        ("gone.png", "image gone.png does not exist"),
        ("text.png", "image text.png is not an image that can be read"),
        ("empty", "folder empty holds no images: files ending in .jpg, .jpeg, .jpe, "),
    ):
        answer = fracskip("predict", checkpoint_file, name)
        assert answer.error.startswith(message)
        assert answer.out == ""


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_record_that_cannot_be_written(
    fracskip: Run, checkpoint_file: Path, pictures: Path, command: str
) -> None:
    Path("file").write_text("")
    rest = ("--data", f"folder:{pictures}") if command == "eval" else (pictures / "val" / "red",)
    answer = fracskip(command, checkpoint_file, *rest, "--json", "file/r.json")
    assert answer.error.startswith("file/r.json could not be written (")


def test_data_sets_to_fetch(fracskip: Run) -> None:
    assert fracskip("data", "imagenet").error == (
        "data set 'imagenet' is unknown: use cifar10, cifar100, fashion-mnist"
    )
    assert "gone is no folder" in fracskip("data", "cifar10", "--from", "gone").error


def test_reports_of_foreign_files(fracskip: Run) -> None:
    Path("text.json").write_text("no JSON")
    Path("foreign.json").write_text(json.dumps({"schema": "other/1"}))
    Path("folder").mkdir()
    for name, message in (
        ("gone.json", "record gone.json does not exist"),
        ("text.json", "text.json is not valid JSON"),
        ("foreign.json", "foreign.json has schema 'other/1'; allowed are"),
        ("folder", "folder holds no record.jsonl"),
    ):
        assert fracskip("report", name).error.startswith(message)
    assert not Path("fracskip-report.html").exists()


# -- our own faults, Ctrl-C, and other ways to end ------------------------------------------------


def test_a_fault_of_ours_shows_its_traceback(
    fracskip: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> int:
        raise ZeroDivisionError("our own")

    monkeypatch.setattr(commands, "run_doctor", fail)
    answer = fracskip("doctor")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("Traceback (most recent call last):")
    *_, last, report = answer.err.splitlines()
    assert last == "ZeroDivisionError: our own"
    assert report == "fracskip: this is a fault of fracskip, please report it"


def test_a_module_that_is_missing_by_our_fault(
    fracskip: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> int:
        raise ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")

    monkeypatch.setattr(commands, "run_doctor", fail)
    answer = fracskip("doctor")
    assert answer.code == 1
    assert "Traceback" in answer.err


def test_ctrl_c(fracskip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_doctor", stop)
    answer = fracskip("doctor")
    assert (answer.code, answer.out, answer.err) == (130, "", "fracskip: interrupted\n")


def test_an_error_of_several_lines_is_told_in_one(
    fracskip: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> int:
        raise commands.DataError("first\n  second\tthird")

    monkeypatch.setattr(commands, "run_doctor", fail)
    assert fracskip("doctor").error == "first second third"


READER_HAS_LEFT = """
import sys
from fracskip.cli import commands, console, main
def run(options):
    for _ in range(20_000):
        console.say("words that nobody reads any more")
    return 0
commands.run_doctor = run
sys.exit(main(["doctor"]))
"""


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """As in `fracskip ... | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER_HAS_LEFT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), errors) == (0, b"")


ENDS = """
import os, sys
from fracskip.cli import commands, console, main
def run(options):
    console.say("words")
    return 0
commands.run_doctor = run
os.{end}
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", ["doctor", "--help"])
@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("close(1)", 0, ""),
        ("dup2(os.open('/dev/full', os.O_WRONLY), 1)", 2, "No space left on device"),
    ],
    ids=["closed", "full"],
)
def test_an_output_that_takes_nothing(
    python: Run, words: str, end: str, code: int, error: str
) -> None:
    script = ENDS.format(end=end)
    if code == 0:  # Python itself says so by having no such stream
        script = script.replace("os.close(1)", "os.close(1); sys.stdout = None")
    answer = python(script, words)
    assert (answer.code, answer.out) == (code, "")
    assert "Traceback" not in answer.err
    assert answer.err.strip() == (
        f"fracskip: error: standard output, or another open file: {error}" if error else ""
    )


SIGNS = """
import sys
from fracskip.cli import commands, console, main
def run(options):
    console.say("· (bits/32)² caf\\udce9.png")
    raise commands.DataError("caf\\udce9.png")
commands.run_doctor = run
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("encoding", "signs"), [("ascii", r"\xb7 (bits/32)\xb2"), ("utf-8", "· (bits/32)²")]
)
def test_signs_that_the_terminal_does_not_have(python: Run, encoding: str, signs: str) -> None:
    """And names of files that are no UTF-8."""
    answer = python(SIGNS, PYTHONIOENCODING=encoding)
    assert answer.error == r"caf\udce9.png"
    assert answer.out.startswith(signs)


# -- bundles --------------------------------------------------------------------------------------


def test_exports_are_named_for_what_they_are(fracskip: Run, checkpoint_file: Path) -> None:
    error = fracskip("export", checkpoint_file, "--to", "net.pt").error
    assert error == "net.pt ends in neither .fsk nor .onnx: choose one of them"
    error = fracskip("export", "gone", "--to", "net.fsk").error
    assert error.startswith("checkpoint gone does not exist")
    assert not Path("net.fsk").exists()


def test_bad_bundles(fracskip: Run, bundle_file: Path, checkpoint_file: Path) -> None:
    Path("cut.fsk").write_bytes(bundle_file.read_bytes()[:-1])
    Path("other.fsk").write_bytes(checkpoint_file.read_bytes())
    for name, message in (
        ("gone.fsk", "bundle gone.fsk does not exist"),
        ("cut.fsk", "cut.fsk has a damaged header"),
        ("other.fsk", "other.fsk is a checkpoint, not a bundle: make one of it with fracskip ex"),
    ):
        assert fracskip("predict", name, "x.png").error.startswith(message)


# -- the command itself ---------------------------------------------------------------------------


def test_the_command_is_also_a_module() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "fracskip.cli", "dance"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
