"""What the values in a record may be: the types that all records are made of."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fracskip.options import Option, OptionSet
from fracskip.text import visible

SHARE_TOLERANCE = 5e-3
ROUNDING = 1e-6  # sums of float32 end a little above 1
MAX_PNG_BYTES = 1 << 20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _visible(value: object) -> object:
    return visible(value) if isinstance(value, str) else value


def _sorted_options(labels: tuple[str, ...]) -> tuple[str, ...]:
    return OptionSet.of(labels).labels


def _one_option(label: str) -> str:
    return Option.parse(label).label


def _at_most(limit: int) -> Callable[[float], float]:
    def check(share: float) -> float:
        if share > limit + ROUNDING:
            raise ValueError(f"a share of at most {limit} is needed")
        whole = int(share)
        return float(whole) if whole and share <= whole + ROUNDING else share

    return check


def _sums_to_one(shares: dict[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    if abs(total - 1) > SHARE_TOLERANCE:
        raise ValueError(f"shares must sum to 1, these sum to {total:.4g}")
    return dict(sorted(shares.items(), key=lambda item: Option.parse(item[0])))


def png_size(png: str) -> tuple[int, int]:
    """Width and height in pixels of a base64 PNG.

    Raises:
        ValueError: if it is no base64, no PNG, or larger than 1 MiB.
    """
    try:
        data = base64.b64decode(png, validate=True)
    except binascii.Error:
        raise ValueError("a base64 string is needed") from None
    if len(data) > MAX_PNG_BYTES:
        raise ValueError(f"a thumbnail may have {MAX_PNG_BYTES} bytes, this has {len(data)}")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(_PNG_SIGNATURE) or not width or not height:
        raise ValueError("a PNG image in base64 is needed")
    return width, height


def _is_png(png: str) -> str:
    png_size(png)
    return png


Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[NonNegative, AfterValidator(_at_most(1))]
# Computation as a share of one execution in full precision; an escalated image has two.
Cost = Annotated[NonNegative, AfterValidator(_at_most(2))]
Count = Annotated[int, Field(strict=True, ge=0)]
# File names have at most 255 bytes, each of which may be spelled out in six characters.
Name = Annotated[str, Field(min_length=1, max_length=2000), BeforeValidator(_visible)]
Digest = Annotated[str, Field(max_length=200), BeforeValidator(_visible)]
OptionLabel = Annotated[str, AfterValidator(_one_option)]
OptionLabels = Annotated[tuple[str, ...], AfterValidator(_sorted_options)]
Shares = Annotated[dict[OptionLabel, Share], AfterValidator(_sums_to_one)]
# The option taken in each gated block.
Decisions = Annotated[tuple[OptionLabel, ...], Field(min_length=1)]
Png = Annotated[str, AfterValidator(_is_png)]


class RecordPart(BaseModel):
    """Frozen; keys that it does not know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
