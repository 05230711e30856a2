"""The text task: `the word CAT in red`, its captions, scenes and pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.captions import Split, is_held_out
from blip3o.shapes.font import GLYPH_HEIGHT, LETTERS, num_columns, word_cells
from blip3o.shapes.world import BACKGROUNDS, COLORS

TEXT_TAG = "text"
_CAPTION = re.compile(r"the word ([A-Z]+) in ([a-z]+)")
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class TextWorld:
    """Parameters of pictures with one word.

    Attributes:
        canvas: Side of the square image, in pixels.
        colors: Names from `COLORS` that words come in.
        letters: Capital letters that words are made of.
        lengths: Least and greatest number of letters.
        heights: Range from which a word's height is drawn, in pixels; long words stay within the canvas.

    Raises:
        ValueError: If a name or letter is unknown, or the longest word does not fit the canvas.
    """

    canvas: int = 64
    colors: tuple[str, ...] = tuple(COLORS)
    letters: str = LETTERS
    lengths: tuple[int, int] = (3, 5)
    heights: tuple[float, float] = (12.0, 20.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "colors", tuple(self.colors))
        object.__setattr__(self, "lengths", tuple(self.lengths))
        object.__setattr__(self, "heights", tuple(self.heights))
        for name, values, known in (("colors", self.colors, tuple(COLORS)), ("letters", self.letters, LETTERS)):
            if not values or len(set(values)) != len(values) or not set(values) <= set(known):
                raise ValueError(f"{name} ({values}) must be distinct and out of {known}; remove any other.")
        for name, (low, high) in (("lengths", self.lengths), ("heights", self.heights)):
            if not 0 < low <= high:
                raise ValueError(f"{name} ({low}, {high}) must be 0 < low <= high; reorder it.")
        if self.max_height(self.lengths[1]) < self.heights[0] or self.heights[1] > self.canvas:
            raise ValueError(
                f"heights {self.heights} do not fit words of {self.lengths[1]} letters on {self.canvas} pixels; lower "
                "them, or enlarge the canvas."
            )

    def max_height(self, num_letters: int) -> float:
        """Greatest height of a word that fits the canvas, in pixels."""
        return min(self.heights[1], self.canvas * GLYPH_HEIGHT / num_columns(num_letters))


TEXT = TextWorld()
"""The default: 64 px, six colours, words of three to five letters, 12 to 20 px high."""

TEXT_MINI = TextWorld(canvas=32, colors=("red", "green", "blue"), lengths=(3, 3), heights=(11.0, 13.0))
"""For fast tests: 32 px, three colours, three letters."""

TEXT_WORLDS: dict[str, TextWorld] = {"text": TEXT, "text-mini": TEXT_MINI}


def get_text_world(name: str | TextWorld) -> TextWorld:
    """Returns the preset called `name`, or the world itself.

    Raises:
        ValueError: If there is no such preset.
    """
    if isinstance(name, TextWorld):
        return name
    if name not in TEXT_WORLDS:
        raise ValueError(f"name ({name!r}) is not a world of words; choose one of {sorted(TEXT_WORLDS)}.")
    return TEXT_WORLDS[name]


@dataclass(frozen=True)
class TextSpec:
    """What a caption asks for: a word and its colour."""

    caption: str
    word: str
    color: str


@dataclass(frozen=True)
class TextScene:
    """A picture's content.

    Attributes:
        background: A name from `BACKGROUNDS`.
        word: Capital letters.
        color: One of `COLORS`.
        x: Left edge of the word, pixels.
        y: Its top edge, pixels.
        height: Its height, pixels.
        caption: The caption.
    """

    background: Literal["white", "black"]
    word: str
    color: str
    x: float
    y: float
    height: float
    caption: str

    @property
    def cell(self) -> float:
        """Side of one cell of the font, pixels."""
        return self.height / GLYPH_HEIGHT


def text_caption(word: str, color: str) -> str:
    """The caption of a word in a colour."""
    return f"the word {word} in {color}"


def parse_text_caption(caption: str, world: TextWorld) -> TextSpec:
    """Reads a caption.

    Raises:
        ValueError: If it is outside the grammar, or asks for something the world lacks.
    """
    match = _CAPTION.fullmatch(caption)
    word, color = match.groups() if match else ("", "")
    low, high = world.lengths
    if color not in world.colors or not low <= len(word) <= high or not set(word) <= set(world.letters):
        raise ValueError(
            f"caption ({caption!r}) cannot be read: write it like 'the word CAT in red', with {low} to {high} of the "
            f"letters {world.letters} and one of the colours {world.colors}."
        )
    return TextSpec(caption, word, color)


def text_metadata(caption: str, world: TextWorld) -> dict[str, Any]:
    """What a caption asks for as plain values: tag, word, color and prompt.

    Raises:
        ValueError: If the caption cannot be read.
    """
    spec = parse_text_caption(caption, world)
    return {"tag": TEXT_TAG, "word": spec.word, "color": spec.color, "prompt": caption}


def sample_text_scene(
    world: TextWorld,
    seed: int,
    index: int,
    *,
    split: Split = "train",
    tag_weights: Mapping[str, float] | None = None,
) -> TextScene:
    """Draws the scene number `index` of the stream `seed`: a pure function of its arguments.

    Args:
        world: Where the scene comes from.
        seed: Stream of scenes, non-negative.
        index: Number in the stream, non-negative.
        split: Captions to draw from: "train", "held_out" (a tenth of all, by md5) or "all".
        tag_weights: Must be None, as there is one task.

    Raises:
        ValueError: If `split` is unknown or has no captions, or there are `tag_weights`.
    """
    if tag_weights is not None:
        raise ValueError(f"tag_weights ({dict(tag_weights)}) weighs tasks, but words have one; leave it out.")
    rng = np.random.default_rng([seed, index])
    word, color = _draw(world, split, rng)
    height = rng.uniform(world.heights[0], world.max_height(len(word)))
    width = height / GLYPH_HEIGHT * num_columns(len(word))
    x, y = rng.random(2) * (world.canvas - width, world.canvas - height)
    background: Literal["white", "black"] = "black" if rng.integers(2) else "white"
    return TextScene(background, word, color, float(x), float(y), float(height), text_caption(word, color))


def _draw(world: TextWorld, split: Split, rng: np.random.Generator) -> tuple[str, str]:
    """A word and a colour of a split; each length is equally likely, then each letter and each colour."""
    if split not in get_args(Split):
        raise ValueError(f"split ({split!r}) is unknown; choose one of {get_args(Split)}.")
    low, high = world.lengths
    for _ in range(_MAX_DRAWS):
        letters = rng.integers(len(world.letters), size=int(rng.integers(low, high + 1)))
        word = "".join(world.letters[letter] for letter in letters)
        color = world.colors[int(rng.integers(len(world.colors)))]
        if split == "all" or is_held_out(text_caption(word, color)) == (split == "held_out"):
            return word, color
    raise ValueError(f"split ({split!r}) has no captions in this world; add letters or colours.")


def text_evaluation_captions(world: TextWorld, num_captions: int, seed: int) -> list[str]:
    """Draws held-out captions to evaluate on, a pure function of its arguments; the first ones stay as more are asked.

    Raises:
        ValueError: If `num_captions` is below one.
    """
    if num_captions < 1:
        raise ValueError(f"num_captions ({num_captions}) must be at least 1; ask for more.")
    rng = np.random.default_rng([seed, TEXT_TAG.encode()[0]])
    return [text_caption(*_draw(world, "held_out", rng)) for _ in range(num_captions)]


def render_text(scene: TextScene, world: TextWorld) -> NDArray[np.uint8]:
    """Draws a scene: every pixel is covered by exactly the share of it that lies under ink.

    Args:
        scene: What to draw.
        world: Gives the canvas.

    Returns:
        RGB picture, uint8, (canvas, canvas, 3).
    """
    cells = word_cells(scene.word)
    rows = _overlap(scene.y, scene.cell, cells.shape[0], world.canvas)
    columns = _overlap(scene.x, scene.cell, cells.shape[1], world.canvas)
    coverage = (rows @ cells @ columns.T)[..., None]
    base, ink = np.array(BACKGROUNDS[scene.background]), np.array(COLORS[scene.color])
    return np.rint(base + coverage * (ink - base)).astype(np.uint8)


def _overlap(start: float, cell: float, count: int, canvas: int) -> NDArray[np.float64]:
    """How much of each pixel lies under each of `count` cells in a row that begins at `start`: (canvas, count)."""
    edges = start + cell * np.arange(count + 1)
    before = np.clip(edges - np.arange(canvas)[:, None], 0, 1)  # of each pixel, what lies before each edge
    return np.diff(before, axis=1)
