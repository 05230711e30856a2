"""Reference images as callers give them: judged, upright, in RGB, then at the sizes that the parts of a model take.

The first picture of a prompt is the one that is edited: what is rendered has its proportions, as far as the diffusion
head can (`DiffusionHead.size_for`). All pictures are then cut to these, around their centres; a head of squares alone,
such as one over `DiT`, sees and renders the central square. The image tokenizer sees the whole picture, squeezed into
its square, in either case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.diffusion.base import DiffusionHead
from blip3o.pixels import as_rgb, check_still, covering, squeezed
from blip3o.structures import MAX_REFERENCES

Picture = Image.Image | np.ndarray | Tensor
"""A PIL image; or an array (H, W, c) or a tensor (c, H, W) of 1, 3 or 4 channels, uint8 or floats in [0, 1]."""
Images = Picture | Sequence[Picture] | Sequence[Sequence[Picture]]
Aspect = Literal["keep", "square"]

MIN_SIZE = 16
"""Shortest side in pixels of a picture that shows anything to edit."""
MAX_PIXELS = 89_478_485
"""Pillow's own bound, above which it suspects a decompression bomb."""
MAX_RATIO = 8
"""Largest ratio of two sides; of a square cut from more, hardly anything is left."""


def check_images(image: Images, rows: int, *, alone: bool) -> list[list[Image.Image]]:
    """The reference images of every prompt, upright and in RGB.

    Args:
        image: as the caller gave them; an array or tensor with one more axis is a list of its members.
        rows: number of prompts.
        alone: whether the prompt was a string, so that a list holds the pictures of that one.

    Raises:
        ValueError: if they are no pictures that can be used, or not one to four for every prompt, as many for each.
    """
    given = [image] if alone or _is_picture(image) else _members(image)
    if given is None or len(given) != rows:
        raise ValueError(
            f"image must be a picture or a list of them for each of the {rows} prompts; {_told(image)} was given."
        )
    several = [[one] if _is_picture(one) or _members(one) is None else _members(one) or [] for one in given]
    for row in several:
        if not 1 <= len(row) <= MAX_REFERENCES or len(row) != len(several[0]):
            counts = [len(one) for one in several]
            raise ValueError(f"image holds {counts} pictures; give 1 to {MAX_REFERENCES}, as many for every prompt.")
    single = len(several) == len(several[0]) == 1
    return [
        [as_picture(one, "image" if single else f"image[{number}][{place}]") for place, one in enumerate(row)]
        for number, row in enumerate(several)
    ]


def as_picture(value: Any, name: str = "image") -> Image.Image:
    """A picture as its viewer shows it (`blip3o.pixels.as_rgb`), of 8 bits a channel.

    Args:
        value: a PIL image, array or tensor.
        name: what errors call it.

    Raises:
        ValueError: if it is none, holds values out of range, can not be decoded, is animated, too small, too large or
            too long.
    """
    if not isinstance(value, Image.Image | np.ndarray | Tensor):
        raise ValueError(
            f"{name} ({_told(value)}) must be a PIL image, an array (H, W, 3) or a tensor (3, H, W); open a file with "
            "PIL.Image.open."
        )
    image = value if isinstance(value, Image.Image) else _from_numbers(value, name)
    try:
        if (reason := _unusable(image)) is None:
            image.load()
            return as_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{name} can not be decoded: {reason}; give another file of it.") from error
    raise ValueError(f"{name} {reason}; give another picture, or a part of it.")


def as_references(
    rows: list[list[Image.Image]], head: DiffusionHead, token_size: int, aspect: Aspect
) -> dict[str, Any]:
    """The reference images as the diffusion head and the image tokenizer take them.

    Args:
        rows: R pictures for each of B rows, from `check_images`.
        head: renders them.
        token_size: side h of the image tokenizer's pictures.
        aspect: whether to keep the proportions of the first picture of a row, or to render the head's square.

    Returns:
        `references` (B, R, 3, H, W) and `token_references` (B, R, 3, h, h), both in [-1, 1], and `size` (H, W), None
        for the head's square.

    Raises:
        ValueError: if `aspect` is unknown, the head has no size, or the rows would be of several sizes.
    """
    if aspect not in ("keep", "square"):
        raise ValueError(f"aspect ({aspect!r}) must be 'keep' or 'square'.")
    square = head.size_for(1, 1)
    head.check_references(len(rows[0]))
    sizes = {square if aspect == "square" else head.size_for(row[0].height, row[0].width) for row in rows}
    if len(sizes) > 1:
        told = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(
            f"image holds pictures whose edits would have several sizes ({told}), but a batch has one; edit them in "
            "calls of their own, or pass aspect='square'."
        )
    size = sizes.pop()
    return {
        "references": torch.stack([torch.stack([covering(one, *size) for one in row]) for row in rows]),
        "token_references": torch.stack([torch.stack([squeezed(one, token_size) for one in row]) for row in rows]),
        "size": None if size == square else size,
    }


def _unusable(image: Image.Image) -> str | None:
    """Why a picture is not to be decoded, None where it is."""
    try:
        check_still(image, MIN_SIZE, MAX_PIXELS)
    except ValueError as error:
        return str(error)
    width, height = image.size
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"has {width} x {height} pixels, whose ratio is above {MAX_RATIO}"
    return None


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | Tensor) and value.ndim <= 3)


def _members(value: Any) -> list[Any] | None:
    """The members of a list, or of an array or tensor of pictures; None where it is neither."""
    several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray | Tensor) and value.ndim > 3)
    return list(value) if several else None


def _from_numbers(value: np.ndarray | Tensor, name: str) -> Image.Image:
    """The picture that an array (H, W, c) or a tensor (c, H, W) holds, or either of (H, W)."""
    kind = "a tensor (3, H, W)" if isinstance(value, Tensor) else "an array (H, W, 3)"
    told = f"{name} ({_told(value)})"
    if isinstance(value, Tensor):
        floating = value.is_floating_point()
        pixels = (value.detach().float() if floating else value.detach()).cpu().numpy()
        pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    else:
        pixels, floating = value, np.issubdtype(value.dtype, np.floating)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{told} must be {kind}, or have 1 or 4 channels there.")
    if floating:
        if not np.isfinite(pixels).all():
            raise ValueError(f"{told} holds NaN or infinite numbers; give floats in [0, 1].")
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"{told} holds numbers from {pixels.min():.4g} to {pixels.max():.4g}; give floats in [0, 1], or uint8."
            )
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ValueError(f"{told} must hold uint8 or floats in [0, 1]; convert it.")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _told(value: object) -> str:
    if isinstance(value, np.ndarray | Tensor):
        return f"{value.dtype}, {tuple(value.shape)}"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else repr(value)
