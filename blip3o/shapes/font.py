"""A bitmap alphabet: capital letters of 5 x 7 cells, each of which touches all four edges of its box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GLYPH_HEIGHT, GLYPH_WIDTH = 7, 5
ADVANCE = GLYPH_WIDTH + 1
"""Cells from one letter to the next: its width and a gap of one."""

_ROWS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".#### #.... #.... #.... #.... #.... .####",
    "D": "###.. #..#. #...# #...# #...# #..#. ###..",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "G": ".#### #.... #.... #..## #...# #...# .####",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "I": "##### ..#.. ..#.. ..#.. ..#.. ..#.. #####",
    "J": "..### ...#. ...#. ...#. #..#. #..#. .##..",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#",
    "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "Q": ".###. #...# #...# #...# #.#.# #..#. .##.#",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "V": "#...# #...# #...# #...# .#.#. .#.#. ..#..",
    "W": "#...# #...# #...# #.#.# #.#.# ##.## #...#",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
    "Z": "##### ....# ...#. ..#.. .#... #.... #####",
}

LETTERS = "".join(_ROWS)
GLYPHS: NDArray[np.float64] = np.array(
    [[[cell == "#" for cell in row] for row in _ROWS[letter].split()] for letter in LETTERS], dtype=float
)
"""The letters' cells, 1 where there is ink, (26, 7, 5) in the order of `LETTERS`."""


def num_columns(num_letters: int) -> int:
    """Cells along the width of a word."""
    return ADVANCE * num_letters - 1


def word_cells(word: str) -> NDArray[np.float64]:
    """The cells of a word (7, 6 n - 1); letters that are none of the alphabet stay blank."""
    cells = np.zeros((GLYPH_HEIGHT, num_columns(len(word))))
    for place, letter in enumerate(word):
        if letter in LETTERS:
            cells[:, ADVANCE * place : ADVANCE * place + GLYPH_WIDTH] = GLYPHS[LETTERS.index(letter)]
    return cells
