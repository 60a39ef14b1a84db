"""Quantisation the slow way: single precision by exact fractions, no NumPy, no torch.

python tests/golden/slow_integers.py     # writes quantised_integers.json again
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

FILE = Path(__file__).with_name("quantised_integers.json")


def round_half_even(value: Fraction) -> int:
    below = value.numerator // value.denominator
    rest = value - below
    if rest == Fraction(1, 2):
        return below if below % 2 == 0 else below + 1
    return below if rest < Fraction(1, 2) else below + 1


def f32(value: Fraction) -> Fraction:
    """The nearest single-precision number (normal range only), ties to the even mantissa."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) / Fraction(2) ** exponent >= 2:
        exponent += 1
    while abs(value) / Fraction(2) ** exponent < 1:
        exponent -= 1
    assert -126 <= exponent <= 127
    unit = Fraction(2) ** (exponent - 23)
    return round_half_even(value / unit) * unit


def bounds_of(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def slow_quantise(x: Fraction, scale: Fraction, zero_point: int, bounds: tuple[int, int]) -> int:
    inverse = f32(1 / scale)
    q = round_half_even(f32(x * inverse)) + zero_point
    return min(max(q, bounds[0]), bounds[1])


def slow_affine(low: Fraction, high: Fraction, bits: int) -> tuple[Fraction, int]:
    low, high = min(low, Fraction(0)), max(high, Fraction(0))
    q_max = 2**bits - 1
    scale = f32(f32(high - low) / q_max)
    zero_point = round_half_even(f32(-low * f32(1 / scale)))
    return scale, min(max(zero_point, 0), q_max)


def cases() -> list[dict[str, object]]:
    rng = random.Random(20200103)
    made: list[dict[str, object]] = []

    def single(value: float) -> Fraction:
        return f32(Fraction(value))

    for bits in (2, 3, 4, 8, 12, 16):
        for kind in ("signed", "unsigned", "affine"):
            bounds = bounds_of(bits, kind == "signed")
            values = [single(rng.uniform(-2.5, 2.5)) for _ in range(24)]
            if kind == "affine":
                low, high = min(values), max(values)
                scale, zero_point = slow_affine(low, high, bits)
            else:
                scale, zero_point = single(rng.uniform(0.5, 2.0) * 4 / 2**bits), 0
            # Exact ties (up to the reciprocal's rounding), zero, and what is clipped.
            values += [f32(scale * Fraction(2 * k + 1, 2)) for k in (-3, -2, -1, 0, 1, 2)]
            values += [Fraction(0), single(100.0), single(-100.0)]
            made.append(
                {
                    "bits": bits,
                    "kind": kind,
                    "bounds": list(bounds),
                    "scale": float(scale).hex(),
                    "zero_point": zero_point,
                    "values": [float(value).hex() for value in values],
                    "integers": [
                        slow_quantise(value, scale, zero_point, bounds) for value in values
                    ],
                }
            )
    return made


if __name__ == "__main__":
    rows = ",\n".join(json.dumps(case) for case in cases())
    FILE.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
