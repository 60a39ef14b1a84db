"""The errors that fracskip raises for what a user hands it.

Every message says what was given, what is allowed and what to do, in one line: the command line
prints it as it is and exits with 2. `assert` is for our own invariants.
"""

MAX_MESSAGE = 2000


class FracskipError(Exception):
    """Base of all errors that a user can cause and mend.

    A message longer than `MAX_MESSAGE` characters, which only quoted input can make it, loses its
    middle: its end says what to do.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(arg) if isinstance(arg, str) else arg for arg in args))


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """A text of at most so many characters: the middle of a longer one is left out.

    >>> shortened("0123456789" * 9, 15)
    '01234 ... 56789'
    """
    if len(text) <= most:
        return text
    kept = (most - len(" ... ")) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


class ConfigError(FracskipError, ValueError):
    """A recipe, an option set or an argument that says something impossible."""


class DataError(FracskipError, ValueError):
    """Images, labels or archives that cannot be used as they are."""


class CheckpointError(FracskipError, ValueError):
    """A checkpoint that is damaged, foreign, of another schema, or does not fit."""


class BundleError(CheckpointError):
    """A deployment bundle that is damaged, foreign, or says something impossible."""


class DivergedError(FracskipError, ArithmeticError):
    """A training whose loss or weights became NaN or infinite."""


class MissingExtraError(FracskipError, ImportError):
    """A feature whose optional dependency is not installed."""
