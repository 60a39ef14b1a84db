"""A checkpoint as it is published: weights that only ever execute as integers held as those.

A network that learned the validation images is too sure of them, so no cascade can be measured on
it. One that was trained alike and has not (`--cascade-of`) lends its own; its run's record will do.

Run from the repository's root:

    python tools/pack.py runs/NAME/model.safetensors --to models/NAME.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fracskip import checkpoint, legacy
from fracskip.data import load_sample
from fracskip.dynamic import preprocess


def lent_cascade(sibling: Path) -> tuple[list[list[float]], str]:
    """The cascade of a checkpoint or of a run's record (.json), and that network's digest."""
    if sibling.suffix == ".json":
        record = legacy.record(json.loads(sibling.read_text()))
        return record["operating_points"]["cascade"], record["test"]["checkpoint_digest"]
    net = checkpoint.load(sibling)
    return [list(row) for row in net.operating_points.cascade], net.digest


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--to", metavar="FILE", type=Path, required=True)
    parser.add_argument("--cascade-of", metavar="CKPT_OR_RECORD", type=Path)
    given = parser.parse_args()
    net = checkpoint.load(given.checkpoint)
    notes = {**net.notes, "packed_from": net.digest}
    if given.cascade_of:
        cascade, notes["cascade_of"] = lent_cascade(given.cascade_of)
        # Its members must lie on this network's curve.
        net.operating_points = net.operating_points.changed(cascade=cascade)
    digest = checkpoint.save(net, given.to, notes, packed=True)
    images = preprocess(load_sample().images[:100], net.spec.image)
    same = torch.equal(net(images).logits, checkpoint.load(given.to)(images).logits)
    if not same:
        given.to.unlink()
        raise SystemExit(f"{given.to} does not compute what {given.checkpoint} does: not written")
    sizes = [path.stat().st_size / 1e6 for path in (given.checkpoint, given.to)]
    print(f"{given.to}: {sizes[1]:.1f} MB of {sizes[0]:.1f}, {digest}")


if __name__ == "__main__":
    main()
