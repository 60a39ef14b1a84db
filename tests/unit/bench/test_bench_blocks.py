"""Blocks and gates by differences, on the portable engine."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from tests.support.residual_networks import Inverted, make_images, make_plain

from fracskip.bench.blocks import (
    block_shapes,
    gate_time,
    kernels_by_option,
    option_times,
    path_times,
)
from fracskip.cli import doctor
from fracskip.deployment.bundle import export_bundle
from fracskip.dynamic import DynamicNetwork, convert
from fracskip.operating import Execution, Prediction
from fracskip.runtime import InferenceSession


@pytest.fixture
def session(net: DynamicNetwork, tmp_path: Path) -> InferenceSession:
    export_bundle(net, tmp_path / "net.fsk")
    return InferenceSession(tmp_path / "net.fsk", engine="portable")


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_shapes(session: InferenceSession) -> None:
    assert [(shape.words, shape.columns) for shape in block_shapes(session.plan)] == [
        ("16 to 32 channels at 8x8", (0,)),
        ("32 to 64 channels at 4x4", (1,)),
    ]


def test_blocks_of_any_network(tmp_path: Path) -> None:
    net = convert(make_plain(Inverted), ["skip", 8, "full"], example_input=make_images(1))
    net.operating_points = net.operating_points.changed(target=0.1)
    export_bundle(net, tmp_path / "net.fsk")
    session = InferenceSession(tmp_path / "net.fsk", engine="portable")
    assert [(shape.words, shape.columns) for shape in block_shapes(session.plan)] == [
        ("8 channels at 12x10", (0,)),
        ("8 to 16 channels at 12x10", (1,)),
        ("16 channels at 6x5", (2,)),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), dtype=np.uint8)
    rows = option_times(session, pixels, rounds=1)  # one block can't be skipped
    assert [list(row.micros) for row in rows] == [["8", "full"]] * 3


def test_paths(session: InferenceSession) -> None:
    skip, full = np.zeros(2, np.uint8), np.full((3, 2), 2, np.uint8)
    times = path_times(session, PIXELS, [skip, full, None], rounds=3)
    assert times.shape == (3, 3)
    assert (times > 0).all()


def test_options_and_gate(session: InferenceSession) -> None:
    rows = option_times(session, PIXELS, rounds=1)
    assert [row.shape.columns for row in rows] == [(0,), (1,)]
    for row in rows:
        assert row.lowest == "skip"
        assert list(row.micros) == ["4", "full"]
    assert gate_time(session, PIXELS, rounds=2) > 0


def test_a_gates_time_is_that_of_one_member() -> None:
    """Two gates of 3 µs a member, one image answered by the first and one that is escalated."""
    decisions = np.zeros((2, 2), np.uint8)
    result = Prediction(
        logits=np.zeros((2, 3), np.float32),
        cost=np.zeros(2, np.float32),
        executions=(Execution(np.arange(2), decisions), Execution(np.array([1]), decisions[:1])),
        gate_us=np.array([[3.0, 3.0], [6.0, 6.0]]),
    )
    session = SimpleNamespace(
        run=lambda pixels, time_gates=False: result, plan=SimpleNamespace(gated_names=("a", "b"))
    )
    assert gate_time(cast(InferenceSession, session), PIXELS[:2], rounds=2) == 3.0


def test_kernels(session: InferenceSession) -> None:
    found = kernels_by_option(session)
    assert list(found) == ["skip", "4", "full"]
    assert sum(found["4"].values()) >= 4


def test_the_doctors_lines(session: InferenceSession) -> None:
    findings = {finding.what: finding.found for finding in doctor._kernels(session, PIXELS)}
    assert list(findings) == [
        "kernels, skip",
        "kernels, 4",
        "kernels, full",
        "block, 16 to 32 channels at 8x8",
        "block, 32 to 64 channels at 4x4",
        "gate",
    ]
    assert findings["block, 16 to 32 channels at 8x8"].startswith("µs above skip: 4 ")
    assert findings["gate"].endswith(" µs")
