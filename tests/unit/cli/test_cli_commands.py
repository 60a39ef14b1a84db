"""What the commands do when all is well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fracskip import __version__
from fracskip.checkpoint import load
from fracskip.cli import commands, doctor
from fracskip.data import DatasetSummary, load_split
from fracskip.evaluation import predict
from fracskip.report import load_record
from fracskip.runtime import InferenceSession, bundle
from fracskip.runtime.engines import instruction_sets
from support.random_bundle import random_bundle
from support.small_cascades import small_cascade

Run = Callable[..., Any]  # conftest.Answer


@pytest.fixture
def recipe(pictures: Path) -> Path:
    """One epoch of each stage."""
    path = Path("r.toml")
    path.write_text(
        f'name = "tiny"\nbatch_size = 12\noptions = ["skip", 4, "full"]\n'
        f'[data]\nname = "folder:{pictures}"\nvalidation = 9\nimage = {{ size = [8, 8] }}\n'
        '[model]\nname = "resnet8"\n[backbone]\nepochs = 1\n[joint]\nepochs = 1\n'
        f"[runtime]\nthreads = {torch.get_num_threads()}\n"
    )
    return path


# -- eval -----------------------------------------------------------------------------------------


def test_eval(fracskip: Run, checkpoint_file: Path, pictures: Path) -> None:
    answer = fracskip("eval", checkpoint_file, "--data", f"folder:{pictures}", "--json", "a/r.json")
    assert (answer.code, answer.err) == (0, "")
    record = json.loads(Path("a/r.json").read_text())
    assert load_record("a/r.json").images == record["images"] == 12
    assert record["checkpoint"]["name"] == str(checkpoint_file)
    assert record["data"]["split"] == "test"
    assert f"{100 * record['accuracy']:.2f}%" in answer.out
    assert f"{100 * record['cp']:.2f}%" in answer.out
    assert "all at 32 bits" in answer.out
    assert "all at 4 bits" in answer.out
    assert answer.out.splitlines()[-1] == "record: a/r.json"


def test_eval_of_another_split(fracskip: Run, checkpoint_file: Path, pictures: Path) -> None:
    words = ("eval", checkpoint_file, "--data", f"folder:{pictures}", "--json", "r.json")
    assert fracskip(*words, "--split", "train").code == 0
    record = json.loads(Path("r.json").read_text())
    assert (record["images"], record["data"]["split"]) == (48, "train")


def test_records_name_images_and_hold_none(
    fracskip: Run, checkpoint_file: Path, pictures: Path
) -> None:
    words = ("eval", checkpoint_file, "--data", f"folder:{pictures}", "--json", "r.json")
    for wanted, kept in (((), 12), (("--examples", 2), 2), (("--examples", 0), 0)):
        assert fracskip(*words, *wanted).code == 0
        text = Path("r.json").read_text()
        examples = json.loads(text)["examples"]
        assert [len(examples[side]) for side in ("cheapest", "dearest")] == [kept, kept]
        assert ("png" in text, "digest" in json.loads(text)["data"]) == (False, kept > 0)
        for named, shown in (((), 0), (("--data", f"folder:{pictures}"), 2 * kept)):
            assert fracskip("report", "r.json", *named, "--out", "r.html").code == 0
            assert Path("r.html").read_text().count('src="data:image/png') == shown


def test_a_limit_is_spread_over_the_set(
    fracskip: Run, checkpoint_file: Path, pictures: Path
) -> None:
    words = ("eval", checkpoint_file, "--data", f"folder:{pictures}", "--json", "r.json")
    assert fracskip(*words, "--split", "train", "--limit", "6").code == 0
    record = json.loads(Path("r.json").read_text())
    # The folder is sorted by class.
    assert [(row["name"], row["images"]) for row in record["classes"]] == [
        ("blue", 2),
        ("green", 2),
        ("red", 2),
    ]
    for limit, images in ((1, 1), (12, 12), (10**6, 12)):
        assert fracskip(*words, "--limit", limit).code == 0
        assert json.loads(Path("r.json").read_text())["images"] == images


# -- predict --------------------------------------------------------------------------------------


def test_predict(fracskip: Run, checkpoint_file: Path, pictures: Path) -> None:
    folder = pictures / "val" / "red"
    files = sorted(folder.iterdir())
    answer = fracskip("predict", checkpoint_file, files[1], folder, "--json", "p.json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(Path("p.json").read_text())
    net = load(checkpoint_file)
    assert set(found) == {"schema", "checkpoint_digest", "predictions", "errors"}
    assert found["schema"] == "fracskip.predictions/2"
    assert found["checkpoint_digest"] == net.digest
    assert found["errors"] == []
    assert [row["file"] for row in found["predictions"]] == list(map(str, [files[1], *files]))

    images = load_split(f"folder:{pictures}", "test", net.spec.image).images[-4:]
    expected = predict(net, images)
    for row, probabilities, path in zip(
        found["predictions"][1:], expected.probabilities, expected.decisions, strict=True
    ):
        assert set(row) == {"file", "class", "probability", "cp", "allocation", "first_allocation"}
        assert row["first_allocation"] is None
        assert row["class"] == net.spec.class_names[probabilities.argmax()]
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert row["allocation"] == [net.options.labels[choice] for choice in path]
        assert row["cp"] == pytest.approx(float(np.array(net.options.costs)[path].mean()))
    first = found["predictions"][0]
    assert f"{100 * first['probability']:.1f}%" in answer.out
    assert " ".join({"skip": "·", "full": "F"}.get(o, o) for o in first["allocation"]) in answer.out


def test_images_of_any_size_and_kind(fracskip: Run, checkpoint_file: Path) -> None:
    Image.new("L", (50, 20), 90).save("grey.png")
    Image.new("RGBA", (5, 5), (1, 2, 3, 4)).save("clear.webp")
    Image.new("RGB", (8, 8)).save("[bold]odd name[red].bmp")
    answer = fracskip("predict", checkpoint_file, ".")
    assert (answer.code, answer.err) == (0, "")
    for name in ("grey.png", "clear.webp", "[bold]odd name[red].bmp"):
        assert name in answer.out


def test_one_bad_image_among_good_ones(fracskip: Run, checkpoint_file: Path) -> None:
    for name in ("a.png", "c.png"):
        Image.new("RGB", (8, 8)).save(name)
    Path("b.png").write_bytes(b"no image")
    answer = fracskip("predict", checkpoint_file, ".", "--json", "p.json")
    assert answer.error == (
        "image b.png is not an image that can be read: use one of JPEG, PNG, WebP, GIF, BMP, TIFF, "
        "PPM"
    )
    assert "a.png" in answer.out
    assert "c.png" in answer.out
    found = json.loads(Path("p.json").read_text())
    assert [row["file"] for row in found["predictions"]] == ["a.png", "c.png"]
    assert found["errors"] == [answer.error]


def test_several_bad_images_are_counted(fracskip: Run, checkpoint_file: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Path(name).write_bytes(b"")
    answer = fracskip("predict", checkpoint_file, ".", "--json", "p.json")
    assert answer.error.startswith("image a.png is empty")
    assert answer.error.endswith(" (and 2 more images)")
    assert answer.out == ""
    assert len(json.loads(Path("p.json").read_text())["errors"]) == 3


# -- export, and what takes a bundle --------------------------------------------------------------


def test_export(fracskip: Run, checkpoint_file: Path) -> None:
    answer = fracskip("export", checkpoint_file, "--to", "new/x.fsk")
    assert (answer.code, answer.err) == (0, "")
    size = Path("new/x.fsk").stat().st_size
    assert answer.out == f"resnet8: new/x.fsk ({size:,} bytes)\n"
    session = InferenceSession("new/x.fsk")
    assert session.plan.source == load(checkpoint_file).digest


def test_eval_of_a_bundle_is_that_of_its_checkpoint(
    fracskip: Run, bundle_file: Path, checkpoint_file: Path, pictures: Path
) -> None:
    records = []
    for network in (bundle_file, checkpoint_file):
        words = ("--data", f"folder:{pictures}", "--json", "r.json")
        answer = fracskip("eval", network, *words)
        assert (answer.code, answer.err) == (0, "")
        records.append(json.loads(Path("r.json").read_text()))
        assert load_record("r.json").images == 12
    ours, theirs = records
    assert "engine" in ours.pop("device")
    for record in records:
        record["checkpoint"].pop("name")
        for key in ("device", "seconds", "versions"):
            record.pop(key, None)
        for point in record["static"]:
            point.pop("seconds")
    assert ours == theirs


def test_predict_with_a_bundle(fracskip: Run, bundle_file: Path, pictures: Path) -> None:
    answer = fracskip("predict", bundle_file, pictures / "val" / "red", "--json", "p.json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(Path("p.json").read_text())
    assert len(found["predictions"]) == 4
    assert found["checkpoint_digest"] == InferenceSession(bundle_file).plan.source


# -- train ----------------------------------------------------------------------------------------


def test_train_and_what_comes_after(fracskip: Run, recipe: Path) -> None:
    """A run, its resumption, its report, and the use of its network."""
    answer = fracskip("train", recipe, "--set", "name=other", "gates.epochs=2", "--set", "seed=5")
    assert answer.code == 0
    run = Path("runs/other")
    written = json.loads((run / "recipe.json").read_text())
    assert (written["name"], written["gates"]["epochs"], written["seed"]) == ("other", 2, 5)
    assert [line.split(":")[0] for line in answer.err.splitlines()] == [
        *["backbone 1", "gates 1", "gates 2", "joint 1"],
        "note",  # the target is not met
    ]
    assert answer.out.splitlines()[-2:] == [
        f"network: {run}/model.safetensors",
        f"record: {run}/run.json",
    ]
    accuracy = json.loads((run / "run.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.2f}%" in answer.out

    same = ("train", recipe, "--set", "name=other", "gates.epochs=2", "seed=5")
    assert fracskip(*same).error.startswith("runs/other already holds a run: add --resume")
    again = fracskip(*same, "--resume")
    done = "note: the run in runs/other is done: nothing is left to do\n"
    assert (again.code, again.err) == (0, done)
    assert again.out == answer.out

    assert fracskip("report", run, "--out", "out.html").out == "report: out.html\n"
    assert Path("out.html").stat().st_size > 10_000
    data = f"folder:{written['data']['name'].removeprefix('folder:')}"
    assert fracskip("eval", run / "model.safetensors", "--data", data, "--json", "e.json").code == 0
    assert json.loads(Path("e.json").read_text())["accuracy"] == accuracy
    assert fracskip("report", run / "run.json", "e.json").out == "report: fracskip-report.html\n"


def test_train_without_a_recipe(fracskip: Run, pictures: Path) -> None:
    """Weights of other classes, a folder; then everything that its network is used for."""
    from safetensors.torch import save_file

    from fracskip.models import create_model

    torch.manual_seed(2)
    save_file(create_model("resnet14", 3, 10).state_dict(), "ten.safetensors")
    words = ["train", "--model", "resnet14", "--weights", "ten.safetensors"]
    words += ["--data", f"folder:{pictures}", "--size", 8, "--options", "skip,4,8"]
    words += ["--epochs", "1", "--budget", "0.02", "--set", "name=mine", "batch_size=12"]
    words += ["backbone.epochs=2", f"runtime.threads={torch.get_num_threads()}"]
    answer = fracskip(*words)
    assert answer.code == 0, answer.err
    first, *lines = answer.err.splitlines()
    assert first == (
        f"note: {Path.cwd()}/ten.safetensors was trained for 10 classes and the data has 3: its "
        "last layer, fc, was made anew"
    )
    stages = ["backbone 1", "backbone 2", "supernet 1", "gates 1", "joint 1", "note"]
    assert [line.split(":")[0] for line in lines] == stages
    assert [line.endswith(" left") for line in lines] == [True, *[False] * 5]

    net = load("runs/mine/model.safetensors")
    assert net.spec.class_names == ("blue", "green", "red")
    assert (net.spec.image.size, net.spec.image.resize) == ((8, 8), 9)
    network, data = "runs/mine/model.safetensors", f"folder:{pictures}"
    assert fracskip("eval", network, "--data", data, "--json", "e.json").code == 0
    record = json.loads(Path("runs/mine/run.json").read_text())
    assert json.loads(Path("e.json").read_text())["accuracy"] == record["test"]["accuracy"]
    assert fracskip("predict", network, pictures / "val" / "red", "--json", "p.json").code == 0
    classes = {row["class"] for row in json.loads(Path("p.json").read_text())["predictions"]}
    assert classes <= set(net.spec.class_names)
    assert fracskip("report", "runs/mine", "e.json").code == 0
    assert "green" in Path("fracskip-report.html").read_text()

    # What it wrote does the same again.
    again = fracskip("train", "runs/mine/recipe.json", "--set", "name=again")
    assert again.code == 0
    ours, theirs = (load(f"runs/{name}/model.safetensors") for name in ("mine", "again"))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_interrupted_training_can_be_resumed(
    fracskip: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fracskip import training

    def stop(*_: object, **__: object) -> None:
        raise training.RunInterrupted("runs/tiny")

    monkeypatch.setattr(training, "train", stop)
    answer = fracskip("train", recipe)
    assert (answer.code, answer.out) == (130, "")
    assert answer.err == (
        "fracskip: stopped; runs/tiny is saved: go on with the same command and --resume\n"
    )


# -- data, doctor, demo, version ------------------------------------------------------------------


def test_data(fracskip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def acquire(name: str, source: Path | None, progress: Callable[[str], None]) -> DatasetSummary:
        calls.append((name, source))
        progress("fetching")
        return DatasetSummary(
            name=name, path=Path("c"), train=5, test=3, classes=2, source="here", title="CIFAR-10"
        )

    monkeypatch.setattr(commands, "acquire", acquire)
    for words, source in ((("cifar10",), None), (("cifar10", "--from", "dir"), Path("dir"))):
        answer = fracskip("data", *words)
        assert answer.out == (
            "fetching\nCIFAR-10: 5 training and 3 test images of 2 classes in c, verified (here)\n"
        )
        assert calls[-1] == ("cifar10", source)


def test_doctor(
    fracskip: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bundle_file: Path,
) -> None:
    monkeypatch.setattr(bundle, "resolve", lambda name: bundle_file)
    monkeypatch.setattr(doctor, "load_sample", lambda: _sample(bundle_file, right=85))
    answer = fracskip("doctor")
    assert (answer.code, answer.err) == (0, "")
    for words in (
        f"fracskip {__version__}"[9:],
        f"torch {torch.__version__}",
        "resnet8, sha256:",
        "85 of 100 bundled images right",
        f"none in {tmp_path / 'cache'}",
    ):
        assert words in answer.out, words
    assert "PROBLEM" not in answer.out

    monkeypatch.setattr(doctor, "load_sample", lambda: _sample(bundle_file, right=79))
    answer = fracskip("doctor")
    assert answer.code == 2
    assert "PROBLEM: 79 of 100 bundled images right" in answer.out
    monkeypatch.setattr(bundle, "resolve", lambda name: tmp_path / "gone")
    answer = fracskip("doctor")
    assert answer.code == 2
    assert "PROBLEM: bundle" in answer.out


@pytest.mark.skipif(not instruction_sets(), reason="built without a C++ compiler")
def test_doctor_of_a_network(fracskip: Run, bundle_file: Path) -> None:
    answer = fracskip("doctor", str(bundle_file))
    assert (answer.code, answer.err) == (0, "")
    for words in ("resnet8, sha256:", "kernels, skip", "block, 16 to 32 channels at 8x8"):
        assert words in answer.out, words
    assert "data sets" not in answer.out
    Path("cascade.fsk").write_bytes(small_cascade(((8, 8), (8, 8))).data)
    Path("static.fsk").write_bytes(random_bundle(1, options=(8,), first=8))
    for name, message in (
        ("cascade.fsk", "cascade.fsk is a cascade of 2 networks: give the bundle of one"),
        ("static.fsk", "static.fsk has one option, and so no widths to compare: give another"),
        ("gone.fsk", "bundle gone.fsk does not exist"),
    ):
        answer = fracskip("doctor", name)
        assert answer.code == 2
        assert message in answer.error


@pytest.mark.parametrize(
    ("micros", "words"),
    [
        ({"2": 5, "4": 5.1, "8": 7, "16": 4, "full": 3}, "; no longer the fewer the bits"),
        ({"2": 5.1, "3": 5.0, "8": 7.0}, "; no longer the fewer the bits"),
        ({"8": 5.0, "4": 5.5, "2": 6.0}, "; 2 longer than 4, 4 longer than 8"),
        ({"8": 5.0, "full": 9.0}, ""),
    ],
)
def test_the_doctor_compares_widths(micros: dict[str, float], words: str) -> None:
    assert doctor.order_of(micros) == words


def _sample(network: Path, right: int) -> Any:
    """A hundred images, so many of which the network gets right."""
    from fracskip.data import ImageSet

    session = InferenceSession(network)
    images = np.random.RandomState(0).randint(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    labels = session.run(images).predicted
    labels[right:] = (labels[right:] + 1) % 3
    return ImageSet(images, labels, session.class_names, "Sample", "test", "made up")


def test_doctor_without_a_home(fracskip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("FRACSKIP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(doctor, "_bundled", list)
    answer = fracskip("doctor")
    assert (answer.code, answer.err) == (0, "")
    assert "none in /nonexistent/.cache/fracskip (" in answer.out


def test_demo(fracskip: Run, monkeypatch: pytest.MonkeyPatch, bundle_file: Path) -> None:
    """A cascade and a network, of the same classes."""
    names = InferenceSession(bundle_file).class_names
    Path("cascade.fsk").write_bytes(small_cascade(((8, 8), (8, 8)), classes=len(names)).data)
    files = {commands.DEMO_CASCADE: Path("cascade.fsk").absolute()}
    monkeypatch.setattr(bundle, "resolve", lambda name: files.get(name, bundle_file))
    monkeypatch.setattr(commands, "load_sample", lambda: _sample(bundle_file, right=90))
    monkeypatch.setattr(commands, "DEMO_BUDGETS", (0.4, 1.0))
    answer = fracskip("demo")
    assert (answer.code, answer.err) == (0, "")
    points = json.loads(Path("fracskip-demo-cascade.json").read_text())["points"]
    assert [point["budget"] for point in points] == [0.4, 1.0]
    assert "µs mean" in answer.out
    record = json.loads(Path("fracskip-demo.json").read_text())
    assert (record["images"], record["accuracy"]) == (100, 0.9)
    assert "90.00%" in answer.out
    assert answer.out.splitlines()[-2:] == [
        "record: fracskip-demo.json",
        "report: fracskip-demo.html",
    ]
    assert "<html" in Path("fracskip-demo.html").read_text()[:300]


def test_version(fracskip: Run) -> None:
    assert fracskip("--version").out == f"fracskip {__version__}\n"
