"""Feeds documents of JSON to the native reader and to Python's, and compares what they read.

    PYTHONPATH=tests python tools/fuzz_json.py --count 500000

The first that differs otherwise than docs/bundle.md says ends the run with it, and so does one that
a sanitizer reports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from support.json_dialect import compare


def main() -> None:
    """Prints what became of the documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = compare(given.count, given.seed, Path(folder))
    both = {name: outcomes.pop(name) for name in ("same", "refused")}
    by_rule = ", ".join(f"{count} {rule}" for rule, count in sorted(outcomes.items()))
    print(f"{both['same']} documents read alike, {both['refused']} refused by both")
    print(f"refused by a rule of the format: {by_rule}")


if __name__ == "__main__":
    main()
