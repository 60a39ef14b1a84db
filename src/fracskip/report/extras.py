"""The one place that knows how to say that Jinja2 or matplotlib is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fracskip.errors import MissingExtraError


@contextmanager
def report_extra() -> Iterator[None]:
    """Turns an `ImportError` in its body into the advice to install the extra.

    Raises:
        MissingExtraError: if an import in the body fails.
    """
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise MissingExtraError(
            f"writing a report needs Jinja2 and matplotlib, and {missing!r} could not be imported: "
            "run `pip install 'fracskip[report]'`"
        ) from error
