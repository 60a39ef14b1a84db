"""What each command does. Functions are named run_COMMAND and return the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fracskip.cli import console, plain
from fracskip.cli.cascade import cascade_rows, show_record
from fracskip.config import EXAMPLES, Recipe, load_recipe
from fracskip.cost import account
from fracskip.data import (
    DATASETS,
    SUFFIXES,
    ImageSet,
    acquire,
    decode_image,
    load_sample,
    load_split,
)
from fracskip.errors import ConfigError, DataError, MissingExtraError
from fracskip.evaluation import evaluate, predict, predictor_of, sweep
from fracskip.evaluation.cascade_record import SCHEMA as CASCADE_SCHEMA
from fracskip.evaluation.predictor import ModelInfo, Network, cascade_session
from fracskip.evaluation.record import first_allocation
from fracskip.evaluation.sweep import POINTS
from fracskip.files import require_regular_file, write_atomically
from fracskip.machine import cores
from fracskip.options import PRESETS
from fracskip.runtime import InferenceSession
from fracskip.runtime.bundle import BUNDLED, SUFFIX
from fracskip.runtime.engines import MAX_THREADS
from fracskip.text import visible

DEMO_RECORD, DEMO_REPORT = "fracskip-demo.json", "fracskip-demo.html"
DEMO_CASCADE, DEMO_CASCADE_RECORD = "cascade-cifar10", "fracskip-demo-cascade.json"
DEMO_BUDGETS = (0.55, 0.6, 0.65, 1.0)  # of the cascade
BUNDLED_RUN = "dfs_resnet38_cifar10.run.json"


def _write_json(path: str, value: Any) -> None:
    write_atomically(Path(path), (json.dumps(value, indent=1) + "\n").encode(), DataError)


def _load(name: str) -> Network:
    """A bundle on all cores, without torch; or a checkpoint on the best device there is."""
    if name not in BUNDLED:
        require_regular_file(name, "network")
    if name in BUNDLED or Path(name).suffix == SUFFIX:
        return InferenceSession(name, threads=min(cores(), MAX_THREADS))
    from fracskip.checkpoint import load
    from fracskip.devices import pick_device

    return load(name).to(pick_device())


def _network(options: argparse.Namespace) -> tuple[Network, str]:
    """The network that the words name, dynamic or plain, and what to call it."""
    if options.model is None:
        plain.refuse_alone(options)
        return _load(options.checkpoint), options.checkpoint
    net = plain.load(options)
    from fracskip.devices import pick_device

    return net.to(pick_device()), options.weights


def _info_of(net: Network) -> ModelInfo | InferenceSession:
    """What says which images and classes a network has; of a cascade its session."""
    return cascade_session(net) or predictor_of(net).info


def _check_classes(known: tuple[str, ...], data: ImageSet, name: str, is_plain: bool) -> None:
    if is_plain:  # its file says how many classes there are, not what they are called
        plain.check_count(len(known), data.class_names, name)
    elif data.class_names != known:
        lacking, unknown = (
            tuple(sorted(set(some) - set(others)))
            for some, others in ((known, data.class_names), (data.class_names, known))
        )
        differences = [f"it lacks {_some(lacking)}"] if lacking else []
        differences += [f"the network has no {_some(unknown)}"] if unknown else []
        raise DataError(
            f"{name} has the classes {_some(data.class_names)}, the network was trained for "
            f"{_some(known)}: give a data set with the same classes"
            f" ({', '.join(differences) or 'in the same order'})"
        )


def _some(names: tuple[str, ...], most: int = 4) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _measure(
    net: Network, data: ImageSet, name: str, budget: float | None = None, examples: int = EXAMPLES
) -> dict[str, Any]:
    session = cascade_session(net)
    if session is not None:
        assert session.cascade is not None
        passes = 1 + len(session.cascade.members)
    else:
        info = predictor_of(net).info
        passes = 1 + sum(not option.is_skip for option in info.options if not info.is_static)
    with console.counting("images", passes * len(data)) as advance:
        return evaluate(net, data, name=name, budget=budget, examples=examples, progress=advance)


def run_demo(options: argparse.Namespace) -> int:
    """The bundled cascade and the bundled network on the bundled images: tables and a report."""
    sample = load_sample()
    # One thread: the times are those of an image by itself.
    session = InferenceSession(DEMO_CASCADE)
    assert session.cascade is not None
    passes = len(session.cascade.members) + len(DEMO_BUDGETS)
    with console.counting("images", passes * len(sample)) as advance:
        cascade = sweep(session, sample, DEMO_BUDGETS, name=DEMO_CASCADE, progress=advance)
    show_record(cascade)
    record = _measure(_load("bundled"), sample, "bundled")
    console.show_evaluation(record)
    for name, value in ((DEMO_CASCADE_RECORD, cascade), (DEMO_RECORD, record)):
        _write_json(name, value)
        console.say(f"record: {name}")
    records: list[str | Path] = [DEMO_CASCADE_RECORD, DEMO_RECORD]
    run = Path(str(resources.files("fracskip") / "assets" / BUNDLED_RUN))
    if run.exists():
        records.append(run)
    try:
        from fracskip.report import write_report

        out = write_report(records, Path(DEMO_REPORT))
    except MissingExtraError as error:
        console.say(f"no report was drawn: {error}")
        return 0
    console.say(f"report: {out}")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that is given, or the one that the arguments come to."""
    own = ("model", "weights", "data", "options", "budget", "epochs", "size")
    given = {name: value for name in own if (value := getattr(options, name)) is not None}
    if options.recipe:
        if given:
            raise ConfigError(
                f"a recipe says all of a run, --{next(iter(given))} is for a run without one: "
                "change the recipe with --set, or leave it out"
            )
        require_regular_file(options.recipe, "recipe", ConfigError)
        return load_recipe(options.recipe, options.overrides)
    if missing := [f"--{name}" for name in ("model", "data") if name not in given]:
        raise ConfigError(
            f"{' and '.join(missing)} missing: give a recipe, or --model and --data to train "
            "without one"
        )
    from fracskip.training.standard import scaled_epochs, standard_recipe

    if "weights" in given:
        require_regular_file(given["weights"], "backbone")
    if "options" in given:
        names = given["options"].split(",")
        given["options"] = names[0] if names[0] in PRESETS else names
    if len(given.get("epochs", ())) == 1:
        given["epochs"] = scaled_epochs(*given["epochs"])
    return standard_recipe(**given, overrides=options.overrides)


def run_train(options: argparse.Namespace) -> int:
    """A recipe, from wherever its run stands."""
    from fracskip.training import RunInterrupted, train

    recipe = _recipe(options)
    folder = Path("runs") / recipe.name
    try:
        with console.TrainingProgress() as watcher:
            path = train(recipe, folder, resume=options.resume, watcher=watcher)
    except RunInterrupted:
        words = f"fracskip: stopped; {folder} is saved: go on with the same command and --resume"
        print(visible(words), file=sys.stderr)
        return 130
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if summary["test"] is not None:  # a note says why there is none
        console.show_evaluation(summary["test"])
    console.say(f"network: {path}")
    console.say(f"record: {folder / 'run.json'}")
    return 0


def _images_for(net: Network, options: argparse.Namespace) -> ImageSet:
    info = _info_of(net)
    with console.decoding() as progress:
        data = load_split(options.data, options.split, info.image, progress=progress)
    # A network whose classes are numbers was plain before, too.
    is_plain = info.class_names == tuple(map(str, range(len(info.class_names))))
    _check_classes(info.class_names, data, options.data, options.model is not None or is_plain)
    for note in data.notes:
        console.remark(note)
    return data.evenly(options.limit) if options.limit else data


def _keep(record: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        _write_json(options.json, record)
        console.say(f"record: {options.json}")
    return 0


def _show(record: dict[str, Any]) -> None:
    if record["schema"] == CASCADE_SCHEMA:
        show_record(record)
    elif "points" in record:
        console.show_sweep(record)
    else:
        console.show_evaluation(record)


def run_eval(options: argparse.Namespace) -> int:
    """A network on a data set."""
    net, name = _network(options)
    record = _measure(net, _images_for(net, options), name, options.budget, options.examples)
    _show(record)
    return _keep(record, options)


def run_sweep(options: argparse.Namespace) -> int:
    """A network on a data set, budget by budget."""
    net, name = _network(options)
    data = _images_for(net, options)
    passes = len(options.budgets) or POINTS
    session = cascade_session(net)
    passes += 0 if session is None or session.cascade is None else len(session.cascade.members)
    with console.counting("images", passes * len(data)) as advance:
        record = sweep(net, data, options.budgets, name=name, progress=advance)
    _show(record)
    return _keep(record, options)


def _image_files(names: list[str]) -> list[Path]:
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):  # unlike its namesake it never raises
            files.append(path)
            continue
        try:
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise DataError(f"folder {name} cannot be read: {error.strerror}") from None
        if not inside:
            raise DataError(
                f"folder {name} holds no images: files ending in {', '.join(SUFFIXES)} are looked "
                "for"
            )
        files.extend(inside)
    return files


def run_predict(options: argparse.Namespace) -> int:
    """Image files, one by one. Those that can't be read don't keep the others from an answer."""
    net, _ = _network(options)
    info = _info_of(net)
    good, pixels, errors = [], [], []
    for file in _image_files(options.images):
        try:
            require_regular_file(file, "image", DataError)
            pixels.append(decode_image(file, info.image))
            good.append(file)
        except DataError as error:
            errors.append(str(error))
    rows = []
    if good and isinstance(info, InferenceSession):
        rows = cascade_rows(info, good, np.stack(pixels), options.budget)
    elif good:
        found = predict(net, np.stack(pixels), budget=options.budget)
        costs = account(found.executions, info.options, info.profile).image_cp
        probabilities, decisions = found.probabilities, found.decisions
        rows = [
            {
                "file": str(file),
                "class": info.class_names[index],
                "probability": float(probabilities[row, index]),
                "cp": float(costs[row]),
                "allocation": [info.options.labels[choice] for choice in decisions[row]],
                "first_allocation": first_allocation(info.options, found, row),
            }
            for row, (file, index) in enumerate(zip(good, found.predicted, strict=True))
        ]
        console.show_predictions(rows)
    if options.json:
        record = {"schema": "fracskip.predictions/2", "checkpoint_digest": info.digest}
        _write_json(options.json, {**record, "predictions": rows, "errors": errors})
    if errors:
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise DataError(errors[0] + more)
    return 0


def run_export(options: argparse.Namespace) -> int:
    """A checkpoint to a file for deployment, of the kind that its suffix says."""
    target = Path(options.to)
    from fracskip.checkpoint import load
    from fracskip.deployment import writer_for

    write = writer_for(target)
    if options.model is None:
        plain.refuse_alone(options)
        require_regular_file(options.checkpoint, "checkpoint")
        net = load(options.checkpoint)
    else:
        net = plain.load(options)
    write(net, target)
    console.say(f"{net.spec.model.name}: {target} ({target.stat().st_size:,} bytes)")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """A network beside other engines, in one interleaved run; or its steps."""
    if options.profile:
        from fracskip.cli import profiling

        found, record = profiling.measure(options)
        profiling.show(found, record)
        return _keep(record, options)
    from fracskip.bench.run import bench
    from fracskip.cli import benchmark

    record = bench(benchmark.plan_from(options), console)
    benchmark.show(record)
    _keep(record, options)
    if options.figure:
        benchmark.write_figure(record, options.figure)
        console.say(f"figure: {options.figure}")
    return 0


def run_report(options: argparse.Namespace) -> int:
    """Records to one HTML file."""
    from fracskip.report import write_report

    out = write_report(options.records, Path(options.out), options.data or "")
    console.say(f"report: {out}")
    return 0


def run_data(options: argparse.Namespace) -> int:
    """A data set into the cache."""
    if options.name not in DATASETS:
        raise DataError(f"data set {options.name!r} is unknown: use {', '.join(DATASETS)}")
    source = None if options.source is None else Path(options.source)
    found = acquire(options.name, source, progress=console.say)
    console.say(
        f"{found.title}: {found.train} training and {found.test} test images of "
        f"{found.classes} classes in {found.path}, verified ({found.source})"
    )
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """The machine and the installation; 2 if something a user must mend is wrong."""
    from fracskip.cli.doctor import examine

    findings = examine(options.bundle)
    console.show_findings(findings)
    return 0 if all(finding.ok for finding in findings) else 2
