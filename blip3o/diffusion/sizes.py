"""Which sides of pictures a denoiser and a codec can render."""

from __future__ import annotations

import math
from collections.abc import Callable

Check = Callable[[int, int], None]
"""Called with height and width of latents; raises a ValueError where they can not be denoised."""


def nearest_size(side: int, factor: int, height: int, width: int, check: Check) -> tuple[int, int]:
    """Sides in pixels of about `side**2` pixels in all, in the ratio of the given ones.

    They are multiples of `factor`, or of a small power of two times it where `check` wants that; the square of `side`
    where it wants neither.
    """
    scale = side / factor / math.sqrt(height * width)
    for step in (1, 2, 4):
        sides = [step * max(1, round(given * scale / step)) for given in (height, width)]
        try:
            check(sides[0], sides[1])
        except ValueError:
            continue
        return sides[0] * factor, sides[1] * factor
    return side, side


def latent_sides(size: tuple[int, int], factor: int, check: Check) -> tuple[int, int]:
    """Sides of the latents of pictures of `size`.

    Raises:
        ValueError: if the codec does not divide it, or the denoiser can not take it.
    """
    if any(side < 1 or side % factor for side in size):
        raise ValueError(f"size ({size}) must be multiples of the codec's spatial factor ({factor}).")
    sides = size[0] // factor, size[1] // factor
    try:
        check(*sides)
    except ValueError as error:
        raise ValueError(f"size ({size}) can not be rendered: {error}") from error
    return sides
