"""Reading picture files that nobody has looked at: what can not be shown as meant is refused, with the reason."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from blip3o.pixels import as_rgb, check_still

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read, by Pillow's names; the rest have no place in a data set or run other programs."""


class Unreadable(ValueError):
    """A row of a source can not be used; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What is taken for a usable picture, and how many unusable rows a source may have.

    Attributes:
        min_size: shortest side, in pixels.
        max_pixels: largest area, in pixels; larger files are refused before they are decoded. The default is Pillow's
            own, above which it suspects a decompression bomb.
        max_failures: largest share of unusable rows.
        after: rows that one process reads before that share is judged.

    Raises:
        ValueError: if a number is out of range.
    """

    min_size: int = 32
    max_pixels: int = 89_478_485
    max_failures: float = 0.05
    after: int = 100

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("min_size", "max_pixels", "after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if not 0 <= self.max_failures <= 1:
            raise ValueError(f"max_failures ({self.max_failures}) must lie in [0, 1]; it is a share of rows.")


DEFAULT_LIMITS = Limits()


def read_picture(file: bytes | Path, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """Decodes a file as an upright RGB picture.

    Args:
        file: the file's bytes, or where it is.
        limits: which sizes are taken.

    Raises:
        Unreadable: if it is missing, no picture, truncated, animated, too large or too small.
    """
    try:
        data = file.read_bytes() if isinstance(file, Path) else file
    except OSError as error:
        raise Unreadable(f"can not be opened: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of areas that `max_pixels` judges, and of odd but readable tags
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check(image, limits)
                image.load()
                return as_rgb(image)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"is no picture of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise Unreadable(f"can not be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check(image: Image.Image, limits: Limits) -> None:
    try:
        check_still(image, limits.min_size, limits.max_pixels)
    except ValueError as error:
        raise Unreadable(str(error)) from error
