"""The vocabulary: what a gate may choose for one residual block.

An `Option` is a bitwidth. 0 bits means skip the block, 2 to 16 bits mean execute it with integer
weights and activations of that width, 32 bits mean execute it in full. An `OptionSet` is an
ascending choice of them; everything else in fracskip (gates, cost, records, reports) counts
options by their index in such a set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fracskip.errors import ConfigError

SKIP_BITS = 0
MIN_BITS, MAX_BITS = 2, 16
FULL_BITS = 32
# Gates that give the sensitivity to an option give its logarithm, 0 being the largest that counts;
# their scores are hundredths of a nat.
LARGEST_SENSITIVITY = 10.0
SENSITIVITY_SCALE = 100 * LARGEST_SENSITIVITY


@dataclass(frozen=True, order=True)
class Option:
    """One way to treat a block.

    Attributes:
        bits: 0 (skip), 2..16 (integers of that width) or 32 (full precision).

    Raises:
        ConfigError: for any other width.

    >>> Option(8).label, Option(0).label, Option(32).label
    ('8', 'skip', 'full')
    >>> Option(8).relative_cost
    0.0625
    """

    bits: int

    def __post_init__(self) -> None:
        whole = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        if not whole or not (
            self.bits in (SKIP_BITS, FULL_BITS) or MIN_BITS <= self.bits <= MAX_BITS
        ):
            raise ConfigError(
                f"option {self.bits!r} is unknown: use 'skip' (0), a width from {MIN_BITS} to "
                f"{MAX_BITS}, or 'full' ({FULL_BITS})"
            )

    @classmethod
    def parse(cls, value: Option | int | str) -> Option:
        """Reads an option from an option, a width, or one of the words 'skip' and 'full'."""
        if isinstance(value, Option):
            return value
        if isinstance(value, str):
            word = value.strip().lower()
            if word in ("skip", "full"):
                return cls(SKIP_BITS if word == "skip" else FULL_BITS)
            try:
                value = int(word)
            except ValueError:
                raise ConfigError(
                    f"option {value!r} is unknown: use 'skip', a width from {MIN_BITS} to "
                    f"{MAX_BITS}, or 'full'"
                ) from None
        return cls(value)

    @property
    def label(self) -> str:
        """'skip', 'full', or the width in decimal digits; the key used in records."""
        return {SKIP_BITS: "skip", FULL_BITS: "full"}.get(self.bits, str(self.bits))

    @property
    def is_skip(self) -> bool:
        """Whether the block is not executed at all."""
        return self.bits == SKIP_BITS

    @property
    def is_full(self) -> bool:
        """Whether the block is executed in full precision."""
        return self.bits == FULL_BITS

    @property
    def is_quantised(self) -> bool:
        """Whether the block is executed with integers."""
        return MIN_BITS <= self.bits <= MAX_BITS

    @property
    def relative_cost(self) -> float:
        """(bits / 32)², the block's cost as a share of its full cost (DFS, section 3)."""
        return (self.bits / FULL_BITS) ** 2


@dataclass(frozen=True)
class OptionSet:
    """An ascending, non-empty choice of options.

    Built with `OptionSet.of`, from a preset's name or from widths and words. A set of one option
    is a static network: it has nothing to decide and needs no gate.

    Raises:
        ConfigError: if it is empty, not ascending, repeats itself, or can only skip.

    >>> OptionSet.of("skip8").labels
    ('skip', '8', 'full')
    >>> OptionSet.of(["skip", 3, 8]).costs
    (0.0, 0.0087890625, 0.0625)
    """

    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        bits = [option.bits for option in self.options]
        if not bits:
            raise ConfigError("an option set needs at least one option, none was given")
        if any(low >= high for low, high in itertools.pairwise(bits)):
            raise ConfigError(f"options {list(self.labels)} must ascend without repeats")
        if bits == [SKIP_BITS]:
            raise ConfigError("an option set of 'skip' alone executes nothing: add a width")

    @classmethod
    def of(cls, value: OptionSet | str | Iterable[Option | int | str]) -> OptionSet:
        """Makes a set from a set, a preset's name, or the options themselves."""
        if isinstance(value, OptionSet):
            return value
        if isinstance(value, str):
            if value not in PRESETS:
                raise ConfigError(
                    f"option preset {value!r} is unknown: use one of {', '.join(PRESETS)}, or a "
                    "list such as ['skip', 4, 8]"
                )
            return PRESETS[value]
        if not isinstance(value, Iterable):
            raise ConfigError(
                f"options {value!r} are unknown: use one of {', '.join(PRESETS)}, or a list such "
                "as ['skip', 4, 8]"
            )
        return cls(tuple(Option.parse(item) for item in value))

    def __len__(self) -> int:
        return len(self.options)

    def __iter__(self) -> Iterator[Option]:
        return iter(self.options)

    def __getitem__(self, index: int) -> Option:
        return self.options[index]

    @property
    def labels(self) -> tuple[str, ...]:
        """The options' labels, in order."""
        return tuple(option.label for option in self.options)

    @property
    def costs(self) -> tuple[float, ...]:
        """The options' relative costs, in order."""
        return tuple(option.relative_cost for option in self.options)

    @property
    def can_skip(self) -> bool:
        """Whether skipping is among the options; then it is option 0."""
        return self.options[0].is_skip

    @property
    def top(self) -> int:
        """Index of the most precise option."""
        return len(self.options) - 1

    def index(self, option: Option | int | str) -> int:
        """Index of an option.

        Raises:
            ConfigError: if it is not in the set.
        """
        wanted = Option.parse(option)
        try:
            return self.options.index(wanted)
        except ValueError:
            raise ConfigError(
                f"option {wanted.label!r} is not in this set; it has {', '.join(self.labels)}"
            ) from None


PRESETS: dict[str, OptionSet] = {
    name: OptionSet(tuple(map(Option, bits)))
    for name, bits in {
        "paper": (0, 8, 16, 32),
        "paper7": (0, 8, 10, 12, 14, 16, 32),
        "low": (0, 2, 3, 4, 6, 8),
        "skip8": (0, 8, 32),
    }.items()
}
