"""What cascades of several networks cost, by hand."""

import numpy as np
import pytest

from fracskip.cost import BlockProfile, CascadeCosts, NetworkProfile, account_cascade
from fracskip.operating import Execution
from fracskip.options import OptionSet

# 100 + 1000 + 20 MACs, all at 8 bits: 1/16 of 1,120.
STATIC = OptionSet.of([8]), NetworkProfile(100, (BlockProfile("a", 1000),), 20, 8, 8)
# A first block and a gated one behind a stem at 32 bits; its gate takes 8 MACs.
GATED = (
    OptionSet.of(["skip", 8, "full"]),
    NetworkProfile(
        200, (BlockProfile("a", 600, gated=False), BlockProfile("b", 1400, gate_macs=8)), 40
    ),
)
UNIT = 200 + 600 + 1400 + 40


def executed(rows: list[int], choices: list[list[int]], network: int) -> Execution[np.ndarray]:
    decisions = np.array(choices, np.uint8).reshape(len(rows), 1)
    return Execution(np.array(rows, np.int64), decisions, network)


@pytest.mark.parametrize(
    ("executions", "macs"),
    [
        ([executed([0, 1], [[0], [0]], 0)], [70, 70]),
        ([executed([0, 1], [[0], [1]], 1)], [848, 848 + 1400 / 16]),
        # The second goes on where the first ended, with a network of its own.
        (
            [executed([0, 1], [[0], [0]], 0), executed([1], [[2]], 1)],
            [70, 70 + 848 + 1400],
        ),
        # The same network again: stem and first block are not executed again.
        (
            [executed([0, 1], [[0], [1]], 1), executed([1], [[2]], 1)],
            [848, 848 + 1400 / 16 + 40 + 8 + 1400],
        ),
        # A static one has no gated block to resume at.
        ([executed([0, 1], [[0], [0]], 0), executed([0], [[0]], 0)], [140, 70]),
        ([executed([0, 1], [[0], [0]], 0), executed([], [], 1)], [70, 70]),
    ],
)
def test_costs_of_cascades_by_hand(
    executions: list[Execution[np.ndarray]], macs: list[float]
) -> None:
    networks = [STATIC, GATED]
    expected = np.array(macs) / UNIT
    found = account_cascade(executions, networks, 1)
    np.testing.assert_allclose(found.image_bitops, expected)
    assert found.bitops_ratio == pytest.approx(expected.mean())
    quick = CascadeCosts.of(networks, 1).of_images(executions, 2)
    np.testing.assert_allclose(quick, expected, rtol=1e-6)
