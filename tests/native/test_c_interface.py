"""The C library as a program without Python has it: installed, found, linked, under sanitizers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fracskip import __version__
from fracskip.data import load_sample
from fracskip.errors import BundleError
from fracskip.runtime import engines
from fracskip.runtime.bundle import resolve
from fracskip.runtime.cascade_bundle import parse_any
from fracskip.runtime.session import InferenceSession
from support.c_programs import BUNDLES, built, driven
from support.hostile_files import Parts
from support.native_build import ROOT, compiler, missing_tools, run

pytest.importorskip("fracskip.runtime._native", reason="built without a C++ compiler")
NM = shutil.which("nm")
C = shutil.which("cc")
pytestmark = pytest.mark.skipif(
    bool(missing_tools()) or C is None or NM is None, reason="no compiler, cmake or nm"
)

HEADER = ROOT / "native" / "include" / "fracskip.h"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("c"), shared=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, make in BUNDLES.items():
        (folder / f"{name}.fsk").write_bytes(make())
    return folder


def images_of(session: InferenceSession, count: int) -> NDArray[np.uint8]:
    """Test images where they fit, else their upper left corners."""
    height, width = session.image.size
    return np.ascontiguousarray(load_sample().images[:count, :height, :width])


def write_images(folder: Path, images: NDArray[np.uint8]) -> Path:
    path = folder / "images"
    path.write_bytes(images.tobytes())
    return path


# -- the example -----------------------------------------------------------------------------------


def write_ppm(path: Path, image: NDArray[np.uint8], comment: bytes = b"") -> Path:
    height, width, _ = image.shape
    path.write_bytes(b"P6\n%s%d %d\n255\n" % (comment, width, height) + image.tobytes())
    return path


def check_example(programs: Path, folder: Path) -> None:
    session = InferenceSession("bundled")
    for index, budget in ((3, None), (5, 0.01), (5, 0.05)):
        image = images_of(session, 8)[index]
        ppm = write_ppm(folder / "image.ppm", image, b"# a comment 1\n")
        asked = [] if budget is None else [str(budget)]
        program = programs / "build" / "classify"
        said = run([str(program), str(resolve("bundled")), str(ppm), *asked])
        found = session.run(image[None], budget=budget)
        name = session.class_names[found.predicted[0]]
        assert said == f"{name}, cost {found.cost[0]:.6f}\n"


def test_example_classifies_as_the_session(programs: Path, tmp_path: Path) -> None:
    check_example(programs, tmp_path)


def test_example_links_with_a_static_library(tmp_path: Path) -> None:
    programs = built(tmp_path, shared=False)
    assert not list((tmp_path / "installed").rglob("*.so*"))
    check_example(programs, tmp_path)


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b"P6 32 32 255\n" + bytes(3072), [], None),
        (b"P6 32 32 255\n" + bytes(3071), [], "ends within its pixels"),
        (b"P6 31 32 255\n" + bytes(3072), [], "is not of the bundle's image size"),
        (b"P6 32 32 65535\n" + bytes(6144), [], "is no binary PPM (P6) of 8 bits a channel"),
        (b"P5 32 32 255\n" + bytes(3072), [], "is no binary PPM (P6) of 8 bits a channel"),
        (b"", [], "is no binary PPM (P6) of 8 bits a channel"),
        (b"P6 # 32", [], "is no binary PPM (P6) of 8 bits a channel"),
        (None, [], "cannot be opened"),
        (b"P6 32 32 255\n" + bytes(3072), ["2"], "budget 2 is out of range"),
        (b"", ["1", "2"], "usage: classify BUNDLE.fsk IMAGE.ppm [BUDGET]"),
    ],
)
def test_example_says_what_is_wrong(
    programs: Path, tmp_path: Path, content: bytes | None, arguments: list[str], said: str | None
) -> None:
    ppm = tmp_path / "image.ppm"
    if content is not None:
        ppm.write_bytes(content)
    command = [programs / "build" / "classify", resolve("bundled"), ppm, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == (1 if said else 0)
    assert said is None or said in done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0)


# -- answers ---------------------------------------------------------------------------------------


def shares(session: InferenceSession) -> list[float]:
    """Budgets: the ends, some in between, and points themselves."""
    if session.budgets is None:
        return []
    low, high = session.budgets
    points = () if session.cascade is not None else session.plan.operating_points.cascade
    return [*np.geomspace(low, high, 9).tolist(), *(row[0] for row in points)]


@pytest.mark.parametrize("name", BUNDLES)
def test_answers_are_the_sessions(programs: Path, files: Path, tmp_path: Path, name: str) -> None:
    session = InferenceSession(files / f"{name}.fsk")
    images = images_of(session, 12)
    budgets = [None, *shares(session)]
    asked = ["default" if budget is None else f"b{budget!r}" for budget in budgets]
    path = write_images(tmp_path, images)
    lines = driven(programs, "run", files / f"{name}.fsk", path, *asked)
    blocks = max(len(plan.gated) for plan in session.networks)
    seen = set()
    for budget, line in zip(budgets, lines, strict=True):
        answer = {key: np.array(values) for key, values in json.loads(line).items()}
        wanted = session.run(images, budget=budget)
        logits = answer["logits"].astype(np.float32).reshape(wanted.logits.shape)
        np.testing.assert_array_equal(logits, wanted.logits)
        np.testing.assert_array_equal(answer["costs"].astype(np.float32), wanted.cost)
        np.testing.assert_array_equal(answer["classes"], wanted.predicted)
        probabilities = answer["probabilities"].reshape(wanted.logits.shape)
        np.testing.assert_allclose(probabilities, wanted.probabilities, rtol=1e-5, atol=1e-7)
        escalations = np.sum([np.isin(range(12), e.rows) for e in wanted.executions[1:]], 0)
        np.testing.assert_array_equal(answer["escalations"], escalations)
        decisions = np.full((12, blocks), 255)
        networks = np.zeros(12)
        for each in wanted.executions:
            decisions[each.rows] = 255
            decisions[each.rows, : each.decisions.shape[1]] = each.decisions
            networks[each.rows] = each.network
        np.testing.assert_array_equal(answer["decisions"].reshape(12, blocks), decisions)
        np.testing.assert_array_equal(answer["networks"], networks)
        assert (answer["microseconds"] > 0).all()
        seen |= {(*decisions[0], networks[0], escalations.sum())}
    assert len(seen) > 1 or len(budgets) == 1, "the case shows nothing"


@pytest.mark.parametrize("name", BUNDLES)
def test_points_are_the_sessions(programs: Path, files: Path, tmp_path: Path, name: str) -> None:
    session = InferenceSession(files / f"{name}.fsk")
    said = json.loads(driven(programs, "describe", files / f"{name}.fsk")[0])
    assert said["digest"] == session.digest
    assert said["version"] == __version__
    assert (said["isa"], said["isas"]) == (session.isa, list(engines.instruction_sets()))
    assert said["image"] == [*session.image.size, session.image.channels]
    assert said["resize"] == session.image.resize
    assert said["classes"] == list(session.class_names)
    assert said["threads"] == 3
    assert said["budgets"] == (None if session.budgets is None else list(session.budgets))
    assert said["networks"] == [
        [plan.name, list(plan.image.size), list(plan.options), list(plan.gated_names)]
        for plan in session.networks
    ]
    images = images_of(session, 6)
    asked = [f"p{index}" for index in range(len(said["points"]))]
    path = write_images(tmp_path, images)
    lines = driven(programs, "run", files / f"{name}.fsk", path, *asked) if asked else []
    if session.cascade is not None:
        cascade = session.cascade
        chosen = [cascade.points[index] for index in cascade.frontier(cascade.bitops)]
        costs = cascade.costs(cascade.bitops)[cascade.frontier(cascade.bitops)]
        right = [point.correct / cascade.images for point in chosen]
        assert said["points"] == [[c, r] for c, r in zip(costs.tolist(), right, strict=True)]
        wanted = [
            session.run_choice(images, cascade.at_cost(cost, cascade.bitops, "{}"))
            for cost in costs
        ]
    else:
        points = session.plan.operating_points
        budgets = [row[0] for row in points.cascade or points.multiplier_curve]
        static = {"static": 0.0625}.get(name, 0.1)
        assert said["points"] == [[budget, -1] for budget in budgets or [static]]
        wanted = [session.run(images, budget=budget) for budget in budgets or [None]]
    for line, each in zip(lines, wanted, strict=True):
        answer = json.loads(line)
        assert np.array(answer["logits"], np.float32).tolist() == each.logits.ravel().tolist()
        assert np.array(answer["costs"], np.float32).tolist() == each.cost.tolist()


def test_threads_share_a_session(programs: Path, files: Path, tmp_path: Path) -> None:
    for name in ("bundled", "cascade of sizes"):
        path = files / f"{name}.fsk"
        images = write_images(tmp_path, images_of(InferenceSession(path), 5))
        assert driven(programs, "threads", path, images) == ["4 threads: the same answers"]


# -- errors ----------------------------------------------------------------------------------------

INVALID, SMALL_BUFFER, UNREADABLE, BAD, NOT_FINITE = 1, 2, 3, 4, 5
ERRORS: dict[str, tuple[int, str]] = {
    "missing file": (UNREADABLE, "bundle no/such/bundle.fsk does not exist: give a .fsk file"),
    "folder": (UNREADABLE, "bundle / is no regular file but a folder, a device, a pipe"),
    "no path": (INVALID, "path is NULL"),
    "no data": (INVALID, "data is NULL"),
    "empty": (BAD, "the file is too short to be a safetensors file"),
    "cut": (BAD, "lies outside the file"),
    "one bit": (BAD, "it does not match its digest: at least one byte was changed"),
    "instruction set": (INVALID, "unknown instruction set 'sse9': give one of 'auto', 'scalar'"),
    "threads": (INVALID, "threads must be 1 to 256"),
    "threads below": (INVALID, "threads must be 1 to 256"),
    "options size": (INVALID, "options->size is 4, it must be 24 or 40: set it to"),
    "no session to write": (INVALID, "session is NULL"),
    "no session": (INVALID, "session is NULL"),
    "no request": (INVALID, "request is NULL"),
    "no answer": (INVALID, "answer is NULL"),
    "request size": (INVALID, "request->size is 8, it must be 48"),
    "no images": (INVALID, "request->images is NULL"),
    "bytes": (INVALID, "is 959, 960 are needed: 5 images of 8 by 8 pixels of 3 bytes"),
    "overflow": (INVALID, f"pixels of {2**63 - 1} images are more than memory could hold"),
    "point": (INVALID, "point -1 does not exist: there are 3, counted from 0"),
    "by": (INVALID, "request->by is 7: give FRACSKIP_BY_DEFAULT"),
    "budget 0": (INVALID, "budget 0 is out of range: give a share in (0, 1]"),
    "budget NaN": (INVALID, "budget nan is out of range: give a share in (0, 1]"),
    "budget out of reach": (INVALID, "budget 1e-09 is out of this network's reach: give a share"),
    "logits": (SMALL_BUFFER, "answer->logits has room for 24 values, 25 are needed: 5 for each"),
    "decisions": (SMALL_BUFFER, "answer->decisions has room for 14 values, 15 are needed"),
    "classes": (SMALL_BUFFER, "answer->classes has room for 0 values, 5 are needed"),
    "answer size": (INVALID, "answer->size is 0, it must be 136"),
    "describe a point": (INVALID, "point 3 does not exist: there are 3, counted from 0"),
    "describe a network": (INVALID, "network -1 does not exist: there are 1, counted from 0"),
    "info": (INVALID, "info is NULL"),
    "sound": (0, ""),
    "nothing asked": (0, ""),
    "no image": (0, ""),
}


def test_errors_are_codes_and_texts(programs: Path, files: Path, tmp_path: Path) -> None:
    bundle = files / "curve and cascade.fsk"
    images = write_images(tmp_path, images_of(InferenceSession(bundle), 5))
    lines = driven(programs, "errors", bundle, images)
    found = {what: (int(code), text) for what, code, text in (row.split("\t") for row in lines)}
    assert list(found) == list(ERRORS)
    for what, (code, text) in ERRORS.items():
        assert found[what][0] == code, what
        assert text in found[what][1], what
        assert bool(text) == bool(found[what][1]), what


def test_logits_that_are_no_numbers_are_said(programs: Path, tmp_path: Path) -> None:
    parts = Parts.of(BUNDLES["static"]())
    last = len(parts.network["parts"]) - 1
    parts.values(f"parts.{last}.full.1.weight", [3e38] * 8)
    (tmp_path / "large.fsk").write_bytes(parts.bundle())
    session = InferenceSession(tmp_path / "large.fsk")
    images = images_of(session, 3)
    with pytest.raises(BundleError, match="logits of 3 of 3 images are NaN or infinite"):
        session.run(images)
    path = write_images(tmp_path, images)
    (line,) = driven(programs, "run", tmp_path / "large.fsk", path, "default")
    found = json.loads(line)
    assert found["status"] == NOT_FINITE
    assert found["text"].startswith("logits of 3 of 3 images are NaN or infinite, the first is")


CURVE, CASCADE = "curve and cascade", "gated cascade"


def without_macs() -> Any:
    cost = Parts.of(BUNDLES[CURVE]()).plan["cost"]
    blocks = [{**block, "branch_macs": 0, "shortcut_macs": 0} for block in cost["blocks"]]
    return {**cost, "stem_macs": 0, "head_macs": 0, "blocks": blocks}


FAULTS: dict[str, tuple[str, tuple[str | int, ...], Any, str]] = {
    "no blocks": (CURVE, ("cost", "blocks"), [], "cost does not list the network's gated parts"),
    "a block's name": (CURVE, ("cost", "blocks", 1, "name"), "b", "does not list the network's"),
    "no MACs": (CURVE, ("cost",), without_macs(), "cost counts no MACs"),
    "MACs": (CURVE, ("cost", "head_macs"), -1, "cost.head_macs must be an integer from 0"),
    "MACs as float": (CURVE, ("cost", "stem_macs"), 1.5, "cost.stem_macs must be an integer"),
    "a block's bits": (CURVE, ("cost", "blocks", 0, "fixed_bits"), 33, "integer from 1 to 32"),
    "a block's key": (CURVE, ("cost", "blocks", 0, "more"), 1, "unknown member 'more'"),
    "no member": (CASCADE, ("members",), [], "members must be 2 to 16"),
    "a member's network": (CASCADE, ("members", 0, "network"), 2, "integer from 0 to 1"),
    "a network unused": (CASCADE, ("members", 2, "network"), 0, "members must name every network"),
    "temperature": (CASCADE, ("members", 1, "temperature"), 0.0, "temperature must be above zero"),
    "no BitOps": (CASCADE, ("members", 1, "bitops"), 0.0, "bitops must be from 1e-30 to 1e30"),
    "a budget": (CASCADE, ("members", 0, "budget"), 0.9, "members[0]: budget 0.9 is out of this"),
    "a budget of none": (CASCADE, ("members", 2, "budget"), 0.1, "members[2]: this network was"),
    "right": (CASCADE, ("members", 0, "correct"), 1001, "integer from 0 to 1000"),
    "no images": (CASCADE, ("images",), 0, "images must be an integer from 1"),
    "no point": (CASCADE, ("points",), [], "points must have each member alone"),
    "an empty chain": (CASCADE, ("points", 0, "chain"), [], "chain must have 1 to 4 members"),
    "a chain's member": (CASCADE, ("points", 0, "chain"), [3], "integer from 0 to 2"),
    "a chain twice": (CASCADE, ("points", 3, "chain"), [1, 1], "chain[1] must ascend"),
    "no threshold": (CASCADE, ("points", 3, "thresholds"), [], "must be one fewer than the chain"),
    "threshold": (CASCADE, ("points", 3, "thresholds"), [1.1], "thresholds[0] must be from 0 to 1"),
    "first rate": (CASCADE, ("points", 3, "rates"), [0.9, 0.5], "must begin with 1 and descend"),
    "rates": (CASCADE, ("points", 3, "rates"), [1.0], "rates must be one for each member"),
    "against": (CASCADE, ("points", 0, "against"), [[1, 1]], "must have one entry for each member"),
    "against more": (CASCADE, ("points", 0, "against", 1), [999, 2], "more images than there are"),
    "against a number": (CASCADE, ("points", 0, "against", 1), [1], "how often it is better"),
    "a point's key": (CASCADE, ("points", 0, "more"), 1, "points[0] has an unknown member 'more'"),
    "a name's null": (CURVE, ("class_names", 1), "a\0b", "holds a null character"),
}


def faulty(data: bytes, way: tuple[str | int, ...], value: Any) -> bytes:
    """With another value in the plan, and a digest that fits."""
    parts = Parts.of(data)
    at = parts.plan
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    return parts.bundle()


def test_bundles_that_cannot_be_operated_are_refused(
    programs: Path, files: Path, tmp_path: Path
) -> None:
    for name, (source, way, value, _) in FAULTS.items():
        data = faulty((files / f"{source}.fsk").read_bytes(), way, value)
        (tmp_path / f"{name}.fsk").write_bytes(data)
        if "null" not in name:  # Python's names may hold what C's can't
            with pytest.raises(BundleError):
                parse_any(data)
    lines = driven(programs, "open", *(tmp_path / f"{name}.fsk" for name in FAULTS))
    for (name, (*_, text)), line in zip(FAULTS.items(), lines, strict=True):
        path, code, said = line.split("\t")
        assert int(code) == BAD, name
        assert said.startswith(f"{path}: plan: "), name
        assert text in said, name


# -- the library -----------------------------------------------------------------------------------


def test_library_exports_what_the_header_declares(programs: Path) -> None:
    declared = set(re.findall(r"\b(fracskip_\w+)\(", HEADER.read_text()))
    (library,) = (programs / "installed").rglob("libfracskip.so")
    command = [str(NM), "-D", "--defined-only", "--format=posix", str(library)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    functions = {row.split("@")[0] for row in rows if row.split()[1] != "A"}
    assert functions == declared
    assert len(declared) == 13


def test_header_is_c_and_cpp(programs: Path) -> None:
    """The programs are C11 under -Wpedantic already."""
    flags = ["-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([str(compiler()), *flags, "-fsyntax-only", str(HEADER)], check=True)
