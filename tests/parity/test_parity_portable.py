"""The portable executor against the NumPy reference: integers to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fracskip.options import Option
from fracskip.runtime.bundle import Bundle, encode_bundle, furthest, parse_bundle
from fracskip.runtime.portable import PortableEngine, network
from fracskip.runtime.portable.network import PortableNetwork
from support.random_bundle import random_bundle, random_images, random_plan, random_tensors
from support.reference import Reference

SHAPES: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"blocks": "bottleneck", "widths": (8, 12)},
    "odd": {"image": (13, 9), "widths": (5, 7, 11), "depth": 1},
    "stem7": {"image": (29, 34), "stem7": True, "channels": 1, "widths": (6, 10)},
    "narrow": {"options": ("skip", 2, 3, 5, 6, 7, 8), "first": 8},
    "ends": {"first": 8, "ends": 8, "stem7": True, "image": (24, 24)},
    "wide": {"options": (8, 9, 16, "full"), "first": 4},
    "uneven": {"uneven": True, "stem7": True, "image": (30, 27), "widths": (8, 10), "first": 8},
    "one class": {"classes": 1, "gate": "feedforward", "depth": 1, "widths": (4,)},
}
CASES = [
    pytest.param(stream, keywords, id=f"{stream}-{name}")
    for stream in ("int8", "float")
    for name, keywords in SHAPES.items()
]


def run(bundle: Bundle, images: np.ndarray, **keywords: Any) -> tuple[np.ndarray, np.ndarray]:
    plan, count = bundle.plan, len(images)
    logits = np.full((count, plan.network.classes), np.nan, np.float32)
    decisions = np.full((count, len(plan.gated)), 255, np.uint8)
    latency_us = np.zeros(count, np.float32)
    PortableEngine(bundle, 1).run(images, logits, decisions, latency_us, **keywords)
    assert (latency_us > 0).all()
    return logits, decisions


@pytest.mark.parametrize(("stream", "keywords"), CASES)
def test_every_block_at_every_option(stream: str, keywords: dict[str, Any]) -> None:
    """Both get the same input for each block, so that nothing hides behind earlier rounding."""
    bundle = parse_bundle(random_bundle(3, stream=stream, **keywords))
    reference, engine = Reference(bundle), PortableEngine(bundle, 1)
    plan, last = bundle.plan, len(bundle.plan.network.parts) - 1
    flowing = engine._normalised(torch.from_numpy(random_images(plan, 2)))
    with torch.inference_mode():
        for index, (part, made) in enumerate(
            zip(plan.network.parts, engine._network.parts, strict=True)
        ):
            inputs = flowing.permute(0, 2, 3, 1).numpy()
            for choice, option in enumerate(map(Option.parse, part.options)):
                found = made.execute(flowing, choice).permute(0, 2, 3, 1).numpy()
                wanted = np.stack([reference.part(index, x, choice) for x in inputs])
                off, where = np.abs(found - wanted), (part.name, option.label)
                narrow = option.bits <= 8 and stream == "int8" and index < last
                if narrow or (option.is_skip and part.skip_is_identity):
                    assert off.max() == 0, where
                elif stream == "int8" and index < last:
                    # A sum of floats that lies on the edge between two levels.
                    assert off.max() <= 1, where
                    assert (off > 0).mean() < 1e-3, where
                else:
                    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
            flowing = made.execute(flowing, len(part.options) - 1)
            if index < last:
                assert 0 < float((flowing > 0).float().mean()) < 1, "the case shows nothing"


@pytest.mark.parametrize(("stream", "keywords"), CASES)
def test_images_by_their_own_paths(stream: str, keywords: dict[str, Any]) -> None:
    bundle = parse_bundle(random_bundle(4, stream=stream, **keywords))
    images = random_images(bundle.plan, 7)
    logits, decisions = run(bundle, images)
    reference = Reference(bundle)
    for image, row, path in zip(images, logits, decisions, strict=True):
        wanted, made, margin = reference.run(image)
        assert margin > 1e-3, "choose another seed"
        assert made == path.tolist()
        np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("stream", ["int8", "float"])
def test_forced_paths_and_normalised_images(stream: str) -> None:
    bundle = parse_bundle(random_bundle(5, stream=stream))
    pixels = random_images(bundle.plan, 6)
    mean, std = (np.array(v, np.float32) for v in (bundle.plan.image.mean, bundle.plan.image.std))
    images = (pixels.astype(np.float32) / 255 - mean) / std
    blocks = len(bundle.plan.gated)
    forced = np.arange(6 * blocks, dtype=np.uint8).reshape(6, blocks) % 4
    logits, decisions = run(bundle, images, forced=forced)
    np.testing.assert_array_equal(decisions, forced)
    for image, row, path in zip(images, logits, forced, strict=True):
        np.testing.assert_allclose(row, Reference(bundle).run(image, path)[0], atol=1e-2)


@pytest.mark.parametrize("gate", ["recurrent", "feedforward"])
def test_budgets(gate: str) -> None:
    bundle = parse_bundle(random_bundle(14, gate=gate, budget_input=True, depth=3))
    images = random_images(bundle.plan, 8)
    budgets = np.geomspace(0.01, 1, 8).astype(np.float32)
    logits, decisions = run(bundle, images, budgets=budgets)
    for image, row, path, budget in zip(images, logits, decisions, budgets, strict=True):
        wanted, made, margin = Reference(bundle).run(image, budget=budget)
        assert margin > 1e-3, "choose another seed"
        assert made == path.tolist()
        np.testing.assert_allclose(row, wanted, atol=1e-2)
    others = run(bundle, images, budgets=budgets[::-1].copy())[1]
    assert (others != decisions).any()


@pytest.mark.parametrize("multiplier", [None, 20.0, 0.5])
@pytest.mark.parametrize("gate", ["recurrent", "feedforward"])
def test_sensitivity_is_weighed_against_cost(gate: str, multiplier: float | None) -> None:
    keywords: dict[str, Any] = {"options": ("skip", 2, 3, 4, 6, 8), "first": 8, "depth": 3}
    keywords |= {"gate": gate, "output": "sensitivity", "multiplier": 3.0}
    bundle = parse_bundle(random_bundle(7, **keywords))
    images = random_images(bundle.plan, 8)
    multipliers = None if multiplier is None else np.full(8, multiplier, np.float32)
    logits, decisions = run(bundle, images, multipliers=multipliers)
    for image, row, path in zip(images, logits, decisions, strict=True):
        wanted, made, margin = Reference(bundle).run(image, multiplier=multiplier)
        assert margin > 1e-4, "choose another seed"
        assert made == path.tolist()
        np.testing.assert_allclose(row, wanted, atol=1e-2)
    assert len(np.unique(decisions)) > 1


def test_a_static_network_always_decides_for_its_one_option() -> None:
    bundle = parse_bundle(random_bundle(7, options=["4"]))
    images = random_images(bundle.plan, 3)
    logits, decisions = run(bundle, images)
    assert decisions.tolist() == [[0, 0, 0]] * 3
    wanted = [Reference(bundle).run(image, np.zeros(3))[0] for image in images]
    np.testing.assert_allclose(logits, wanted, atol=1e-2)


def test_a_batch_is_what_its_images_are_alone() -> None:
    bundle = parse_bundle(random_bundle(8, depth=4))
    images = random_images(bundle.plan, 20)
    logits, decisions = run(bundle, images)
    for index in range(20):
        alone = run(bundle, images[index : index + 1])
        np.testing.assert_array_equal(alone[1][0], decisions[index])
        np.testing.assert_allclose(alone[0][0], logits[index], rtol=1e-5, atol=1e-4)


def test_what_is_skipped_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = parse_bundle(random_bundle(9))
    images = random_images(bundle.plan, 4)
    rows: list[int] = []
    convolve = network.F.conv2d

    def counting(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(x))
        return convolve(x, *rest)

    monkeypatch.setattr(network.F, "conv2d", counting)
    forced = np.zeros((4, 3), np.uint8)
    run(bundle, images, forced=forced)
    # Stem, the first block's two, one projection for all, and the head.
    assert rows == [4, 4, 4, 4, 4]
    rows.clear()
    forced[:3] = [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
    run(bundle, images, forced=forced)
    # Each block's branch for one image; the projection, in two groups, for all.
    assert sorted(rows) == [1] * 7 + [3] + [4] * 4


def test_sums_beyond_float32_are_exact_too() -> None:
    """The weights' bound sends them to float64; every level and weight at its most."""
    plan = random_plan(widths=(80, 80), depth=1, options=["skip", 8])
    tensors = random_tensors(plan, 1)
    for name in ("parts.2.8.0.weight", "parts.2.shortcut.0.weight"):
        tensors[name][:] = 127
    tensors["parts.2.8.0.weight"][:, 1, 1, ::3] = -126
    tensors.pop("parts.2.8.0.input", None)
    bundle = parse_bundle(encode_bundle(plan, tensors)[0])
    assert furthest(bundle.tensors["parts.2.8.0.weight"]) > 1 << 24
    levels = np.full((1, 16, 16, 80), 255, np.float32)
    levels[0, ::2, 1::3, ::5] = 254
    x = torch.from_numpy(levels).permute(0, 3, 1, 2)
    found = PortableEngine(bundle, 1)._network.parts[2].execute(x, 1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, Reference(bundle).part(2, levels[0], 1))


def test_threads_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = parse_bundle(random_bundle(1))
    before = torch.get_num_threads()
    seen = []
    pool = PortableNetwork.pool

    def watching(self: PortableNetwork, gated: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return pool(self, gated, x)

    monkeypatch.setattr(PortableNetwork, "pool", watching)
    images = random_images(bundle.plan, 1)
    engine = PortableEngine(bundle, before + 1)
    logits, decisions = np.empty((1, 5), np.float32), np.empty((1, 3), np.uint8)
    engine.run(images, logits, decisions, np.empty(1, np.float32))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
