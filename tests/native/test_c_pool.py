"""The C library on threads of the caller's pool, under AddressSanitizer."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from support.c_programs import built, driven
from support.native_build import missing_tools
from support.random_bundle import random_bundle

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) or shutil.which("cc") is None, reason="no compiler or cmake"
)

INVALID = 1
POOLS = ("serial", "backwards", "threads", "nested", "documented")
# What a session of three tasks calls parallel_for for: images by threes, those left over by a team.
CALLS = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2}
BROKEN = {"none": 0, "one": 1, "twice": 6}  # how often each calls one of three tasks
Outcomes = dict[tuple[str, int], tuple[int, int, str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Of each pool and number of images: calls of parallel_for, the status, the error."""
    folder = tmp_path_factory.mktemp("pool")
    image = (48, 48)
    data = random_bundle(5, image=image, widths=(32,), depth=2)
    (folder / "large.fsk").write_bytes(data)
    pixels = np.random.default_rng(3).integers(0, 256, (5, *image, 3), np.uint8)
    (folder / "images").write_bytes(pixels.tobytes())
    programs = built(folder, shared=True)
    lines = driven(programs, folder / "large.fsk", folder / "images", driver="pool")
    rows = [line.split("\t") for line in lines]
    return {(name, int(n)): (int(calls), int(code), text) for name, n, calls, code, text in rows}


def test_answers_are_the_same_bits_on_any_pool(outcomes: Outcomes) -> None:
    found = {key: row for key, row in outcomes.items() if key[0] in POOLS}
    wanted = {(name, count): (CALLS[count], 0, "") for name in POOLS for count in CALLS}
    # Runs that begin within another's parallel_for come on top.
    for count in CALLS:
        calls, *rest = found.pop(("nested", count))
        assert calls > CALLS[count]
        assert rest == [0, ""]
        del wanted["nested", count]
    assert found == wanted
    assert [outcomes["none of its own", count] for count in CALLS] == [(0, 0, "")] * 5


@pytest.mark.parametrize("name", BROKEN)
def test_a_pool_that_breaks_its_contract_is_an_error(outcomes: Outcomes, name: str) -> None:
    for count in CALLS:
        calls, code, text = outcomes[name, count]
        assert (calls, code) == (1, INVALID)
        assert f"was given 3 tasks and had called {BROKEN[name]} when it returned" in text


def test_a_pool_needs_a_number_of_tasks(outcomes: Outcomes) -> None:
    assert outcomes["no threads", 0] == (
        0, INVALID, "options->threads is 0 with a parallel_for: give how many tasks it runs at once"
    )  # fmt: skip
