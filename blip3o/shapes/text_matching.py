"""Matching words with templates of the font: where a word lies, which letters come nearest, how well they fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from blip3o.shapes.font import ADVANCE, GLYPH_HEIGHT, GLYPH_WIDTH, GLYPHS, LETTERS, num_columns, word_cells

MAX_MISMATCH = 0.25
"""Largest share of its ink by which a letter may differ from its template; beyond it is read as `UNREADABLE`."""
UNREADABLE = "?"

_SMOOTHING = 1.0  # standard deviation (pixels) of the blur under which pictures are compared
_MAX_SOFTNESS = 1.5  # standard deviation (pixels) of the blur a picture may bring itself
_REACH = 2.0  # pixels by which the first guess of the place may be off
_RIM = 2.0  # pixels around a word that belong to it

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a word may be: its left and top edge, height, and the blur of the picture, all in pixels."""

    x: float
    y: float
    height: float
    softness: float

    @property
    def cell(self) -> float:
        """Side of one cell of the font, pixels."""
        return self.height / GLYPH_HEIGHT

    def box(self, num_letters: int) -> tuple[slice, slice]:
        """Rows and columns of a word there, with the rim into which it is smoothed."""
        width = self.cell * num_columns(num_letters)
        ends = ((self.y, self.height), (self.x, width))
        rows, columns = (slice(max(0, round(at - _RIM)), max(0, round(at + size + _RIM))) for at, size in ends)
        return rows, columns

    def templates(self, num_letters: int, shape: tuple[int, ...]) -> tuple[Matrix, Matrix]:
        """Smoothed ink of each row (H, 7) and each column of cells (W, 6 n - 1) in a picture of shape (H, W)."""
        blur = math.hypot(_SMOOTHING, self.softness)
        return (
            _smooth_overlap(self.y, self.cell, GLYPH_HEIGHT, shape[0], blur),
            _smooth_overlap(self.x, self.cell, num_columns(num_letters), shape[1], blur),
        )


def smoothed(coverage: Matrix) -> Matrix:
    """Coverage (canvas, canvas) as it is compared with templates: a little blurred, which hides the noise of pixels."""
    blur = _blur_matrix(len(coverage))
    return blur @ coverage @ blur


def nearest_word(seen: Matrix, place: Place, num_letters: int, alphabet: str) -> str:
    """At a place, the letters whose templates come nearest; once each alone, then beside those found first."""
    rows, columns = place.templates(num_letters, seen.shape)
    across = columns.T @ columns
    down = rows.T @ rows
    match = rows.T @ seen @ columns
    known = np.array([LETTERS.index(letter) for letter in alphabet])
    glyphs = GLYPHS[known]
    word = ""
    for _ in range(2):
        neighbours = down @ word_cells(word) @ across if word else np.zeros_like(match)
        letters = []
        for number in range(num_letters):
            slot = slice(ADVANCE * number, ADVANCE * number + GLYPH_WIDTH)
            blurred = down @ glyphs @ across[slot, slot]
            own = down @ word_cells(word)[:, slot] @ across[slot, slot] if word else 0
            near = match[:, slot] - neighbours[:, slot] + own
            distance = (glyphs * (blurred - 2 * near)).sum((1, 2))
            letters.append(alphabet[int(distance.argmin())])
        word = "".join(letters)
    return word


def fit(seen: Matrix, word: str, place: Place) -> Place:
    """The place, size and blur at which a word explains a picture best."""
    cells = word_cells(word)
    top, left = (max(0, math.floor(at - 2 * _REACH)) for at in (place.y, place.x))
    bottom = math.ceil(place.y + place.height + 2 * _REACH)
    right = math.ceil(place.x + place.cell * cells.shape[1] + 2 * _REACH)
    part = seen[top:bottom, left:right]  # the rest would only cost time

    def difference(values: Matrix) -> Matrix:
        rows, columns = Place(*values).templates(len(word), part.shape)
        return np.ravel(rows @ cells @ columns.T - part)

    start = np.array([place.x - left, place.y - top, place.height, place.softness])
    reach = np.array([_REACH, _REACH, 0.2 * place.height, 0])
    low, high = start - reach, start + reach
    low[3], high[3] = 0, _MAX_SOFTNESS
    fitted = optimize.least_squares(difference, start, bounds=(low, high), xtol=1e-3, ftol=1e-3, max_nfev=12)
    x, y, height, softness = fitted.x.tolist()
    return Place(x + left, y + top, height, softness)


def readable(seen: Matrix, word: str, place: Place) -> tuple[str, float]:
    """The word with letters that differ too much from their templates left unreadable, and how strong its ink is."""
    rows, columns = place.templates(len(word), seen.shape)
    template = rows @ word_cells(word) @ columns.T
    strength = float((seen * template).sum() / (template**2).sum())
    difference, ink = np.abs(seen - strength * template), strength * template
    letters = []
    for number, letter in enumerate(word):
        own = replace(place, x=place.x + place.cell * ADVANCE * number).box(1)
        letters.append(letter if difference[own].sum() <= MAX_MISMATCH * ink[own].sum() else UNREADABLE)
    return "".join(letters), strength


def _smooth_overlap(start: float, cell: float, count: int, size: int, blur: float) -> Matrix:
    """How much each of `size` pixels is covered by each of `count` cells, after a Gaussian blur: (size, count)."""
    edges = (start + cell * np.arange(count + 1) - np.arange(size + 1)[:, None]) / blur
    area = blur * (edges * special.ndtr(edges) + np.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi))
    before = area[:-1] - area[1:]  # of each pixel, what lies before each edge
    return before[:, 1:] - before[:, :-1]


@lru_cache(maxsize=16)
def _blur_matrix(size: int) -> Matrix:
    steps = np.arange(size)
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / _SMOOTHING) ** 2)
    matrix: Matrix = weights / (_SMOOTHING * math.sqrt(2 * math.pi))
    return matrix
