"""Runs the native drivers at length.

Threads under ThreadSanitizer, kernels and failed allocations under AddressSanitizer, and a thousand
engines whose memory is watched:

    PYTHONPATH=tests python tools/sanitize_native.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from support.native_build import build, run, write_seeds


def main() -> None:
    """Stops at the first driver that fails, with its report."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = str(write_seeds(Path(folder)))
        threads = build("thread", "native_threads") / "tests" / "threads"
        print(run([str(threads), seeds, "200"]), end="", flush=True)
        kernels = build("address", "native_kernels") / "tests" / "kernels"
        print(run([str(kernels), "2000"]), end="", flush=True)
        faults = build("address", "native_faults") / "tests" / "faults"
        print(run([str(faults), seeds]), end="", flush=True)
        churn = build("plain", "native_churn") / "tests" / "churn"
        print(run([str(churn), seeds, "1000"]), end="")


if __name__ == "__main__":
    main()
