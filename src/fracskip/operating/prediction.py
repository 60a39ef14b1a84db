"""What a network, a session or a cascade answers: one type, of torch's tensors or NumPy's arrays.

Shapes: B images, L gated blocks, K options, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fracskip.errors import ConfigError

Array = TypeVar("Array")


class Execution(NamedTuple, Generic[Array]):
    """What one member of a cascade executed; a network without a cascade is its only member.

    Attributes:
        rows: Indices of the images that it answered, ascending, (M,).
        decisions: Option indices (M, L), of its own blocks and options.
        network: Its network's number, among those of a cascade.
    """

    rows: Array
    decisions: Array
    network: int = 0


class Prediction(NamedTuple, Generic[Array]):
    """The answers for a batch; a tuple, as what wraps modules expects.

    Attributes:
        logits: Of the member that answered, (B, N).
        cost: Relative cost of each image over its gated blocks, (B,): 1 is all in full. In
            training it carries the gates' gradient. All members that saw an image count. Of a
            cascade of several networks: BitOps executed, over those of the last member's plain
            network at 32 bits.
        executions: One a member, in order: the first saw all images, each other one those that were
            escalated to it.
        scores: In training: the gates' scores (B, L, K), offsets included, without noise.
        latency_us: Time of each image in microseconds, float32 (B,), where it was measured. The
            portable engine works on whole batches: it gives each image its share of the time.
        gate_us: What each block's gate took in all members, in microseconds, float32 (B, L), where
            that was asked for.
    """

    logits: Array
    cost: Array
    executions: tuple[Execution[Array], ...]
    scores: Array | None = None
    latency_us: Array | None = None
    gate_us: Array | None = None

    @property
    def decisions(self) -> Array:
        """Option indices (B, L), of the member that answered.

        Raises:
            ConfigError: if members are several networks, with blocks of their own: `executions` has
                the decisions of each.
        """
        first, *others = self.executions
        if any(other.network != first.network for other in others):
            raise ConfigError(
                "this cascade's members are several networks, so there is no one matrix of "
                "decisions: use executions"
            )
        if not others:
            return first.decisions
        values: Any = first.decisions
        # Whole, and changed nowhere else: torch's copy has another name than NumPy's.
        found: Any = values.clone() if hasattr(values, "clone") else values.copy()
        for other in others:
            found[other.rows] = other.decisions
        return found  # type: ignore[no-any-return]

    @property
    def escalated(self) -> Array:
        """Which images were answered by another member than the first, bool (B,)."""
        first, *others = self.executions
        rows: Any = first.rows
        found: Any = rows < 0
        for other in others:
            found[other.rows] = True
        return found  # type: ignore[no-any-return]

    @property
    def predicted(self) -> Array:
        """The class of the largest logit of each image, (B,)."""
        logits: Any = self.logits
        return logits.argmax(1)  # type: ignore[no-any-return]

    @property
    def probabilities(self) -> Array:
        """Softmax of the logits, float32 (B, N)."""
        logits: Any = self.logits
        if hasattr(logits, "softmax"):
            return logits.float().softmax(1)  # type: ignore[no-any-return]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)  # type: ignore[return-value]


Arrays: TypeAlias = Prediction[NDArray[Any]]


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The predictions of several batches as one, in order; times of gates are left out."""
    starts = np.cumsum([0, *(len(part.logits) for part in parts)])
    executions = []
    for members in zip(*(part.executions for part in parts), strict=True):
        moved = [each.rows + start for each, start in zip(members, starts, strict=False)]
        decisions = [each.decisions for each in members]
        network = members[0].network
        executions.append(Execution(np.concatenate(moved), np.concatenate(decisions), network))
    times = [part.latency_us for part in parts if part.latency_us is not None]
    return Prediction(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.cost for part in parts]),
        tuple(executions),
        latency_us=np.concatenate(times) if len(times) == len(parts) else None,
    )
