"""Predictions: of one member or of a cascade, of torch's tensors or NumPy's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.operating import Execution, Prediction, joined

KINDS: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": torch.tensor}
LOGITS = [[0.0, 1.0], [3.0, 1.0], [0.0, 2.0]]
FIRST, SECOND = [[1, 1], [1, 0], [2, 2]], [[3, 2]]


def cascade(make: Callable[[Any], Any], row: int = 1) -> Prediction[Any]:
    """Three images of which one is escalated."""
    members = (Execution(make([0, 1, 2]), make(FIRST)), Execution(make([row]), make(SECOND)))
    return Prediction(make(LOGITS), make([0.1, 0.2, 0.3]), members)


@pytest.mark.parametrize("kind", KINDS)
def test_the_member_that_answered_is_the_last_one(kind: str) -> None:
    found = cascade(KINDS[kind])
    assert found.decisions.tolist() == [[1, 1], [3, 2], [2, 2]]
    assert found.executions[0].decisions.tolist() == FIRST  # as it was
    assert found.escalated.tolist() == [False, True, False]
    assert found.predicted.tolist() == [1, 0, 1]
    probabilities = torch.as_tensor(found.probabilities)
    torch.testing.assert_close(probabilities, torch.tensor(LOGITS).softmax(1), check_dtype=False)
    alone = found._replace(executions=found.executions[:1])
    assert alone.decisions is alone.executions[0].decisions
    assert alone.escalated.tolist() == [False] * 3


def test_batches_are_joined() -> None:
    one, two = (cascade(np.asarray, row) for row in (2, 0))
    whole = joined([one, two])
    assert whole.escalated.tolist() == [False, False, True, True, False, False]
    assert whole.decisions.tolist() == [*one.decisions.tolist(), *two.decisions.tolist()]
    assert whole.executions[1].rows.tolist() == [2, 3]
    assert whole.logits.tolist() == LOGITS * 2
    assert whole.cost.tolist() == [0.1, 0.2, 0.3] * 2
