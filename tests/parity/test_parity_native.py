"""The native engine against the portable one, on every instruction set of this processor."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fracskip.runtime import InferenceSession
from fracskip.runtime.engines import instruction_sets
from support.chains import run_chain
from support.hostile_files import Parts
from support.random_bundle import random_bundle, random_images

SHAPES: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"blocks": "bottleneck", "widths": (8, 12)},
    "odd": {"image": (13, 9), "widths": (5, 7, 11), "depth": 1},
    "stem7": {"image": (29, 34), "stem7": True, "channels": 1, "widths": (6, 10)},
    "narrow": {"options": ("skip", 2, 3, 5, 6, 7, 8), "first": 8},
    "ends": {"first": 8, "ends": 8, "stem7": True, "image": (24, 24)},
    "wide": {"options": (8, 9, 16, "full"), "first": 4},
    "feedforward": {"gate": "feedforward", "depth": 1, "widths": (4, 20)},
    "wide gate": {"gate_width": 200, "depth": 1, "widths": (4, 20)},
    "sensitivity": {
        "output": "sensitivity",
        "multiplier": 4.0,
        "options": ("skip", 2, 3, 4, 6, 8),
        "first": 8,
    },
    "feedforward sensitivity": {"output": "sensitivity", "gate": "feedforward", "depth": 3},
    "uneven": {"uneven": True, "stem7": True, "image": (30, 27), "widths": (16, 24), "first": 8},
    "uneven bottleneck": {"uneven": True, "blocks": "bottleneck", "image": (11, 14)},
    "few bits": {
        "options": ("skip", 2, 3, 4, 5),
        "first": 8,
        "widths": (16, 40),
        "image": (15, 18),
    },
    "many channels": {"widths": (120, 136), "depth": 1, "image": (8, 8), "first": 8},
}

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="built without a C++ compiler")


def write(folder: Path, seed: int, **keywords: Any) -> tuple[Path, NDArray[np.uint8]]:
    data = random_bundle(seed, **keywords)
    path = folder / "random.fsk"
    path.write_bytes(data)
    plan = InferenceSession(path, engine="portable").plan
    return path, random_images(plan, 6, seed)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("stream", ["int8", "float"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_gives_the_portable_answers(
    shape: str, stream: str, isa: str, tmp_path: Path
) -> None:
    path, images = write(tmp_path, 11, stream=stream, **SHAPES[shape])
    portable = InferenceSession(path, engine="portable").run(images)
    native = InferenceSession(path, engine="native", isa=isa).run(images)
    assert (native.decisions == portable.decisions).all()
    # A float sum in another order may move a value across the edge of a level, never further.
    scale = np.abs(portable.logits).max()
    assert np.abs(native.logits - portable.logits).max() <= 0.02 * scale


@pytest.mark.parametrize("isa", instruction_sets())
def test_uneven_paddings_run_on_the_same_kernels(isa: str, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"widths": (16, 24), "options": ("skip", 4, 8, 16, "full")}
    found = []
    for uneven in (False, True):
        path, _ = write(tmp_path, 1, uneven=uneven, **shape)
        found.append(InferenceSession(path, engine="native", isa=isa).kernels())
    assert found[0] == found[1]


# What executes 3x3 convolutions of stride 1, of 16 channels and 32, by bits.
FEW_BITS = {
    "avx2": {
        2: {"4x2"},
        3: {"4x2", "4x2_wide"},
        4: {"2x2", "2x2_wide"},
        6: {""},
        8: {""},
    },
    "avx512_vnni": {2: {"2x2_wide", "4x2_wide"}, 3: {"2x2_wide", "4x2_wide"}, 4: {"2x2_wide"}},
}


@pytest.mark.parametrize("isa", sorted({*FEW_BITS} & {*instruction_sets()}))
def test_few_bits_run_on_kernels_of_their_own(isa: str, tmp_path: Path) -> None:
    path, _ = write(tmp_path, 3, options=("skip", 2, 3, 4, 6, 8), widths=(16, 32), first=8)
    session = InferenceSession(path, engine="native", isa=isa)
    last = session.plan.gated_names[-1]
    found = {label: set(names) for block, label, names in session.kernels() if block == last}
    for bits, suffixes in FEW_BITS[isa].items():
        allowed = {f"{isa}_int8_winograd_{suffix}".rstrip("_") for suffix in suffixes}
        assert found[str(bits)] <= allowed, bits


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("shape", ["stem7", "ends", "bottleneck"])
def test_a_bundle_of_version_3_gives_the_same_bits(shape: str, engine: Any, tmp_path: Path) -> None:
    path, images = write(tmp_path, 11, **SHAPES[shape])
    (tmp_path / "old.fsk").write_bytes(Parts.of(path.read_bytes()).as_version_3().bundle())
    wanted, found = (
        InferenceSession(each, engine=engine).run(images) for each in (path, tmp_path / "old.fsk")
    )
    np.testing.assert_array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(found.decisions, wanted.decisions)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("stream", ["int8", "float"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_second_member_is_the_network_asked_again(
    shape: str, stream: str, engine: Any, tmp_path: Path
) -> None:
    """Whatever lies between: stems that pool, projections, bottlenecks, many channels."""
    path, images = write(tmp_path, 11, stream=stream, **SHAPES[shape])
    running = InferenceSession(path, engine=engine, threads=2)._engine
    cheap, dear = (run_chain(running, images, multipliers=[each]) for each in (30, -30))
    assert (cheap.decisions[0] != dear.decisions[0]).any()
    # Of all images, of none; a third member goes on from where the second did.
    for threshold, answer in ((2.0, dear), (0.0, cheap)):
        for more in (0, 1):
            found = run_chain(
                running,
                images,
                (0, 0, 0)[: 2 + more],
                multipliers=[30, *[0] * more, -30],
                thresholds=[threshold] * (1 + more),
            )
            assert (found.logits == answer.logits).all()
            assert (found.decisions[0] == cheap.decisions[0]).all()
            assert (found.answered == (1 + more if threshold else 0)).all()
            wanted = dear.decisions[0] if threshold else 255
            assert (found.decisions[-1] == wanted).all()


@pytest.mark.parametrize("ends", [8, "full"])
def test_instruction_sets_give_the_same_bits_from_the_same_levels(
    ends: int | str, tmp_path: Path
) -> None:
    keywords: dict[str, Any] = {"options": ("skip", 4, 8), "first": 8, "ends": ends}
    path, images = write(tmp_path, 5, stream="int8", image=(12, 12), widths=(16, 24), **keywords)
    if ends == "full":
        # With one pixel value everywhere the float stem has nothing to round differently.
        images = np.full_like(images, 128)
    answers = [InferenceSession(path, isa=isa).run(images) for isa in instruction_sets()]
    for other in answers[1:]:
        assert (other.decisions == answers[0].decisions).all()
        np.testing.assert_allclose(other.logits, answers[0].logits, rtol=1e-5)


@pytest.mark.parametrize("options", [("skip", 4, 8), (8,)])
@pytest.mark.parametrize(
    "shape", [{"blocks": "bottleneck", "widths": (8, 44)}, {"widths": (8, 176)}]
)
def test_shortcuts_of_many_values_go_strip_by_strip(
    shape: dict[str, Any], options: tuple[str | int, ...], tmp_path: Path
) -> None:
    """A stage's first block: its shortcut's float32 values come to more than half a megabyte."""
    path, images = write(
        tmp_path, 5, stream="int8", image=(58, 54), options=options, first=8, ends=8, **shape
    )
    portable = InferenceSession(path, engine="portable").run(images)
    answers = []
    for isa in instruction_sets():
        for threads in (1, 3):
            session = InferenceSession(path, engine="native", isa=isa, threads=threads)
            joined = [kernel for _, _, kernel, _, _ in session._engine.steps(0) if " + " in kernel]
            assert len(joined) == len([option for option in options if option != "skip"])
            answers.append(session.run(images[:2]))
    for answer in answers:
        assert (answer.logits == answers[0].logits).all()
        assert (answer.decisions == portable.decisions[:2]).all()
    scale = np.abs(portable.logits).max()
    assert np.abs(answers[0].logits - portable.logits[:2]).max() <= 0.02 * scale


def test_threads_and_sharing_change_nothing(tmp_path: Path) -> None:
    path, images = write(tmp_path, 7, image=(16, 16))
    images = np.concatenate([images] * 8)
    alone = InferenceSession(path, threads=1, engine="native").run(images)
    session = InferenceSession(path, threads=3, engine="native")
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: session.run(images), range(12)):
            assert (result.logits == alone.logits).all()
            assert (result.decisions == alone.decisions).all()


def test_integers_really_run_on_integer_kernels(tmp_path: Path) -> None:
    best = instruction_sets()[-1]
    path, images = write(tmp_path, 3, image=(32, 32), widths=(32,), options=("skip", 8, "full"))
    session = InferenceSession(path, engine="native")
    assert session.isa == best
    for _, option, kernels in session.kernels():
        if option == "8":
            assert all(f"{best}_int8" in name for name in kernels)
        if option == "full":
            assert all("fp32" in name for name in kernels)
    if best == "scalar":
        return
    images = np.concatenate([images] * 4)

    def fastest(isa: str) -> float:
        engine = InferenceSession(path, engine="native", isa=isa)
        forced = engine.forced(8, len(images))
        runs = [np.median(engine.run(images, decisions=forced).latency_us) for _ in range(5)]
        return float(min(runs))

    # A fall-back to plain loops would be twenty times slower; 3 leaves room for a busy machine.
    assert fastest("scalar") > 3 * fastest(best)


@pytest.mark.skipif("avx2" not in instruction_sets(), reason="of AVX2 alone")
def test_few_bits_are_added_up_in_sixteen_on_avx2(tmp_path: Path) -> None:
    widths = ("skip", 2, 4, 6, 7, 8)
    path, images = write(
        tmp_path, 5, blocks="bottleneck", widths=(16, 24), options=widths, first=8, image=(9, 9)
    )
    session = InferenceSession(path, engine="native", isa="avx2")
    portable = InferenceSession(path, engine="portable")
    ends = {option: names[0].rpartition("_")[2] for _, option, names in session.kernels() if names}
    few = dict.fromkeys(("2", "4", "6"), "narrow")
    assert {option: ends[option] for option in ("7", "8", *few)} == {
        "7": "direct",
        "8": "direct",
        **few,
    }
    for option in widths:
        forced = session.forced(option, len(images))
        wanted = portable.run(images, decisions=forced).logits
        off = np.abs(session.run(images, decisions=forced).logits - wanted).max()
        assert off <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("stream", ["int8", "float"])
def test_sixteen_bits_run_in_bfloat16_where_tiles_multiply_it(stream: str, tmp_path: Path) -> None:
    keywords = {"image": (16, 16), "widths": (16, 40), "options": (9, 16, "full")}
    path, images = write(tmp_path, 4, stream=stream, **keywords)
    portable = InferenceSession(path, engine="portable")
    errors: dict[str, dict[str, float]] = {}
    for isa in instruction_sets():
        session = InferenceSession(path, engine="native", isa=isa)
        tiles = {option: "bf16" in " ".join(names) for _, option, names in session.kernels()}
        assert tiles == dict.fromkeys(tiles, False) | (
            {"9": True, "16": True} if isa == "amx" else {}
        )
        errors[isa] = {}
        for option in ("9", "16", "full"):
            forced = session.forced(option, len(images))
            wanted = portable.run(images, decisions=forced).logits
            off = np.abs(session.run(images, decisions=forced).logits - wanted).max()
            errors[isa][option] = float(off / np.abs(wanted).max())
    for isa, found in errors.items():
        assert max(found.values()) < 0.02
        if stream == "float":  # on an int8 stream a value on a level's edge may fall either way
            rounded = [found["9"], found["16"]] if isa == "amx" else []
            exact = [value for value in found.values() if value not in rounded]
            assert all(1e-5 < value for value in rounded)
            assert all(value < 1e-5 for value in exact)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("torch", "most"), [(False, 0), (True, 1)], ids=["alone", "with torch"])
def test_one_openmp_runtime_at_most(torch: bool, most: int, tmp_path: Path) -> None:
    path, _ = write(tmp_path, 1, image=(8, 8), widths=(4,))
    code = f"""
import pathlib, re, sys
{"import torch; torch.ones(300, 300) @ torch.ones(300, 300)" if torch else ""}
import numpy as np
from fracskip.runtime import InferenceSession
session = InferenceSession({str(path)!r}, threads=2, engine="native")
session.run(np.zeros((4, 8, 8, 3), np.uint8))
assert {torch} == ("torch" in sys.modules)
maps = pathlib.Path("/proc/self/maps").read_text()
print(len(set(re.findall(r"/\\S*lib(?:gomp|iomp5?|omp)[-.]\\S*", maps))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == most
