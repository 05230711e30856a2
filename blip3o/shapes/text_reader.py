"""The reader of words: from pixels alone to a word and its colour, by matching templates of the font."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from blip3o.shapes.font import ADVANCE, GLYPH_HEIGHT, num_columns
from blip3o.shapes.segmentation import COLOR_TOLERANCE, find_backgrounds
from blip3o.shapes.text import TextWorld, parse_text_caption
from blip3o.shapes.text_matching import UNREADABLE, Matrix, Place, fit, nearest_word, readable, smoothed
from blip3o.shapes.world import BACKGROUNDS, COLORS

MIN_STRENGTH = 0.7
"""Least share of a colour that a word must show; below it is too pale."""
SIZE_SLACK = 0.1
"""How far, as a share, a height may lie outside the world's range."""

_INK = 0.35  # coverage from which a pixel is taken to belong to a mark
_TRACE = 0.15  # smoothed coverage from which a pixel beside the word holds something
_SPECK = 5  # marks of fewer pixels are specks


@dataclass(frozen=True)
class Reading:
    """What a picture says.

    Attributes:
        word: Its letters, `UNREADABLE` for a mark that is none; empty where there is no word.
        color: The colour of its ink, or None where there is none.
        background: A name from `BACKGROUNDS`, or None where the border shows neither.
        defect: What makes the picture no scene of the world (in words), or None.
        x: Left edge of the word, pixels.
        y: Its top edge, pixels.
        height: Its height, pixels.
    """

    word: str
    color: str | None
    background: str | None
    defect: str | None = None
    x: float = math.nan
    y: float = math.nan
    height: float = math.nan


@dataclass(frozen=True)
class TextVerdict:
    """Whether a picture shows what its caption says; `reason` tells why not, and is empty if it does."""

    correct: bool
    reason: str
    reading: Reading


def read_text(images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], world: TextWorld) -> list[Reading]:
    """Reads pictures from their pixels alone.

    The background comes from the border; the ink is the one colour whose mixtures with it explain the picture best.
    Marks give a first guess of the word's box, whose proportions tell the number of letters. Letters and place are then
    found in turn: at a place, each letter is the template nearest to its part of the picture, given its neighbours;
    with the letters, place, size and blur are fitted by least squares.

    Args:
        images: Batch of RGB pictures, uint8, (B, canvas, canvas, 3), or a sequence of single ones.
        world: Where the pictures should come from.

    Returns:
        One reading a picture.

    Raises:
        ValueError: If the pictures have another type or size.
    """
    batch = np.asarray(images)
    side = world.canvas
    if len(batch) == 0:
        return []
    if batch.dtype != np.uint8 or batch.shape[1:] != (side, side, 3):
        told = f"images ({batch.dtype}, {batch.shape}) must be uint8 and (B, {side}, {side}, 3)"
        raise ValueError(f"{told}; convert or resize them.")
    return [_read(image, name, world) for image, name in zip(batch, find_backgrounds(batch), strict=True)]


def verify_text(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], captions: Sequence[str], world: TextWorld
) -> list[TextVerdict]:
    """Checks pictures against captions: the word and its colour exactly, nothing else.

    Raises:
        ValueError: If pictures or captions cannot be read, or their numbers differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"captions ({len(captions)}) must be as many as images ({len(images)}); pair them.")
    specs = [parse_text_caption(caption, world) for caption in captions]
    verdicts = []
    for seen, spec in zip(read_text(images, world), specs, strict=True):
        reason = seen.defect or ""
        if not reason and (seen.word, seen.color) != (spec.word, spec.color):
            reason = f"expected {spec.word} in {spec.color}, found {seen.word} in {seen.color}"
        verdicts.append(TextVerdict(not reason, reason, seen))
    return verdicts


def _read(image: NDArray[np.uint8], background: str | None, world: TextWorld) -> Reading:
    if background is None:
        return Reading("", None, None, "the background is neither white nor black")
    color, coverage, strange = _find_ink(image - np.array(BACKGROUNDS[background], dtype=float), background, world)
    marks = _find_marks(coverage)
    if not marks.any():
        return Reading("", None, background, "there is no word")
    left, right = _edges(coverage, marks.max(0))
    top, bottom = _edges(coverage.T, marks.max(1))
    height = bottom - top
    num_letters = round((GLYPH_HEIGHT * (right - left) / max(height, 1) + 1) / ADVANCE)
    if height < GLYPH_HEIGHT / 2 or not 1 <= num_letters <= 2 * world.lengths[1]:
        return Reading("", color, background, f"marks of {right - left:.0f} x {height:.0f} pixels are no word")
    seen = smoothed(coverage)
    place = Place((left + right - height / GLYPH_HEIGHT * num_columns(num_letters)) / 2, top, height, 0.5)
    word = ""
    for _ in range(3):
        earlier, word = word, nearest_word(seen, place, num_letters, world.letters)
        if word == earlier:
            break
        place = fit(seen, word, place)
    word, strength = readable(seen, word, place)
    around = np.ones_like(strange)
    around[place.box(len(word))] = False
    num_stray = int((strange | (around & ((coverage >= _INK) | (seen >= _TRACE)))).sum())
    defect = _defect(word, strength, num_stray, place, world)
    return Reading(word, color, background, defect, place.x, place.y, place.height)


def _find_ink(offset: Matrix, background: str, world: TextWorld) -> tuple[str, Matrix, NDArray[np.bool_]]:
    """The colour whose mixtures with the background explain an image best.

    Args:
        offset: the image less its background, (H, W, 3).
        background: its name.
        world: gives the colours.

    Returns:
        Its name; how far each pixel turned from the background (0) to it (1), (H, W); and the pixels that are no
        mixture of the two.
    """
    direction = np.array([COLORS[name] for name in world.colors], float) - BACKGROUNDS[background]
    length = (direction**2).sum(1)
    along = offset @ direction.T
    coverage = np.clip(along / length, 0, 1)
    remainder = (offset**2).sum(2)[..., None] + coverage * (coverage * length - 2 * along)
    best = int(remainder.sum((0, 1)).argmin())
    cover = np.clip(along[..., best] / length[best], -0.25, 1.25)
    return world.colors[best], cover, remainder[..., best] > COLOR_TOLERANCE**2


def _find_marks(coverage: Matrix) -> NDArray[np.bool_]:
    """Pixels of marks, without specks."""
    labels, count = ndimage.label(coverage >= _INK, structure=np.ones((3, 3)))
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= _SPECK
    kept[0] = False
    return kept[labels]


def _edges(coverage: Matrix, inked: NDArray[np.bool_]) -> tuple[float, float]:
    """First and last edge of the marks along the columns, by how much ink the outermost ones hold."""
    profile = np.clip((coverage.max(0) - 0.15) / (coverage.max() - 0.15), 0, 1)
    places = np.flatnonzero(inked)
    first, last = int(places[0]), int(places[-1])
    return first + 1 - float(profile[max(first - 1, 0) : first + 1].sum()), last + float(profile[last : last + 2].sum())


def _defect(word: str, strength: float, num_stray: int, place: Place, world: TextWorld) -> str | None:
    low, high = world.heights
    if UNREADABLE in word:
        return f"a mark of {word} is no letter"
    if not MIN_STRENGTH <= strength <= 2 - MIN_STRENGTH:
        return f"the ink shows {strength:.2f} of its colour"
    if not (1 - SIZE_SLACK) * low <= place.height <= (1 + SIZE_SLACK) * high:
        return f"the word is {place.height:.1f} pixels high, outside {low:g} to {high:g}"
    if num_stray > world.canvas**2 // 400:
        return f"{num_stray} stray pixels belong to no word"
    return None
