"""Float images: whether they can be what normalisation makes of pixels."""

from __future__ import annotations

import math

from fracskip.config import ImageConfig
from fracskip.errors import DataError

SLACK = 5
"""By how many times its own width values may leave the range of normalised pixels."""

NORMALISE = "((pixels / 255 - image.mean) / image.std).astype(numpy.float32)"


def normalised_range(image: ImageConfig) -> tuple[float, float]:
    """The smallest and the largest value that normalisation makes of a pixel, over all channels."""
    pairs = list(zip(image.mean, image.std, strict=True))
    return min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)


def check_normalised(low: float, high: float, image: ImageConfig) -> None:
    """Refuses float images whose values show that they are pixels.

    Two ranges do: 0 to 1, where the mean is above 0 (a constant batch says nothing), and values
    further outside of `normalised_range` than `SLACK` times its width.

    Args:
        low: The smallest value of all images.
        high: The largest.
        image: The network's normalisation.

    Raises:
        DataError: naming both ranges; or if a value is NaN or infinite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("images hold NaN or infinite values: leave them out")
    lowest, highest = normalised_range(image)
    slack = SLACK * (highest - lowest)
    are_shares = lowest < 0 <= low < high <= 1
    if not are_shares and lowest - slack <= low and high <= highest + slack:
        return
    raise DataError(
        f"float images with values from {low:.4g} to {high:.4g} are not normalised: by this "
        f"network's mean and std, pixels come to {lowest:.4g} to {highest:.4g}; give the uint8 "
        f"pixels themselves or {NORMALISE}, with the network's image; if they are normalised, say "
        "so with normalised=True"
    )
