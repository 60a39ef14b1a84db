"""Pillow's warnings, which say nothing that a user of fracskip can act on, kept from everybody."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_inside = 0
_filters = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Lets no warning of Pillow's pass, neither to stderr nor as an error, from any thread.

    `warnings.catch_warnings` is not made for threads: of several that overlap, the last one out
    could bring back filters of one that has ended. Here the first one in keeps the filters, and
    the last one out brings them back.
    """
    global _inside
    with _lock:
        if not _inside:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _filters.close()
