"""What a shapes world contains: its canvas, palette, kinds of object, tasks and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 70, 220),
    "yellow": (245, 215, 20),
    "purple": (150, 40, 190),
    "orange": (250, 130, 20),
}
"""RGB prototype of every colour name, 0-255."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (23, 23, 28)}
"""RGB of every background name, 0-255; "black" is a near-black."""

SHAPE_NAMES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
TAGS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The tasks, under the names GenEval gives them."""

COLORLESS_TAGS: frozenset[str] = frozenset({"single_object", "two_object"})
"""Tags whose captions name no colour; they have no held-out captions of their own."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
COUNT_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}

_MAX_FILL = 0.75  # share of a row that the smallest objects may take; random layouts need the rest
_PAIR_TAGS = frozenset({"two_object", "position", "color_attr"})


def _default_half_extents() -> dict[int, tuple[float, float]]:
    return {1: (10.0, 16.0), 2: (8.5, 12.0), 3: (7.5, 9.5), 4: (7.5, 8.5)}


@dataclass(frozen=True)
class World:
    """Parameters of a procedural image world.

    Attributes:
        canvas: Side of the square image, in pixels.
        colors: Names from `COLORS` that captions and objects use.
        shapes: Names from `SHAPE_NAMES` that captions and objects use.
        tags: Tasks from `TAGS` that the world offers.
        max_count: Largest number a counting caption asks for (2 to 4).
        half_extents: For each number of objects in a scene, the range (pixels) from which every
            object's half-extent h is drawn.
        gap: Smallest distance between two bounding boxes, in pixels.
        position_margin: For a spatial relation, how much the centres' distance along the named axis
            must exceed their distance across it, in pixels.

    Raises:
        ValueError: If a name is unknown, or a scene that some tag asks for cannot fit the canvas.
    """

    canvas: int = 64
    colors: tuple[str, ...] = tuple(COLORS)
    shapes: tuple[str, ...] = SHAPE_NAMES
    tags: tuple[str, ...] = TAGS
    max_count: int = 4
    half_extents: Mapping[int, tuple[float, float]] = field(default_factory=_default_half_extents, hash=False)
    gap: float = 3.0
    position_margin: float = 4.0

    def __post_init__(self) -> None:
        for name, known in (("colors", tuple(COLORS)), ("shapes", SHAPE_NAMES), ("tags", TAGS)):
            object.__setattr__(self, name, _checked_names(name, getattr(self, name), known))
        extents = {int(n): (float(low), float(high)) for n, (low, high) in self.half_extents.items()}
        object.__setattr__(self, "half_extents", extents)
        if self.canvas < 16:
            raise ValueError(f"canvas ({self.canvas}) must be at least 16 pixels; use a larger canvas.")
        if self.max_count not in COUNT_WORDS:
            raise ValueError(f"max_count ({self.max_count}) must be in {sorted(COUNT_WORDS)}; choose one.")
        if self.gap < 2:
            raise ValueError(f"gap ({self.gap}) must be at least 2 pixels; nearer objects cannot be told apart.")
        if not 0 <= self.position_margin <= self.canvas / 4:
            raise ValueError(
                f"position_margin ({self.position_margin}) must lie between 0 and a quarter of the canvas "
                f"({self.canvas / 4}); change it."
            )
        pair_tags = sorted(_PAIR_TAGS.intersection(self.tags))
        if pair_tags and len(self.shapes) < 2:
            raise ValueError(
                f"shapes ({self.shapes}) must hold two kinds for {pair_tags}; add a shape or drop the tags."
            )
        if "color_attr" in self.tags and len(self.colors) < 2:
            raise ValueError(
                f"colors ({self.colors}) must hold two names for color_attr; add a colour or drop the tag."
            )
        for count in self.object_counts:
            self._check_fit(count)

    @property
    def object_counts(self) -> tuple[int, ...]:
        """Every number of objects that a scene of this world can hold, ascending."""
        counts: set[int] = set()
        if {"single_object", "colors"}.intersection(self.tags):
            counts.add(1)
        if _PAIR_TAGS.intersection(self.tags):
            counts.add(2)
        if "counting" in self.tags:
            counts.update(range(2, self.max_count + 1))
        return tuple(sorted(counts))

    def _check_fit(self, count: int) -> None:
        if count not in self.half_extents:
            raise ValueError(f"half_extents ({dict(self.half_extents)}) has no range for {count} object(s); add one.")
        low, high = self.half_extents[count]
        if not 0 < low <= high:
            raise ValueError(f"half_extents[{count}] ({low}, {high}) must be 0 < low <= high; reorder it.")
        per_row = math.ceil(math.sqrt(count))
        room = (per_row * 2 * low + (per_row - 1) * self.gap) / _MAX_FILL
        if max(room, 2 * high) > self.canvas:
            raise ValueError(
                f"half_extents[{count}] ({low}, {high}) does not fit {count} object(s) with gaps of "
                f"{self.gap} and room to spare on {self.canvas} pixels; lower it or enlarge the canvas."
            )


def _checked_names(argument: str, names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(names)
    unknown = [name for name in names if name not in known]
    if not names or unknown or len(set(names)) != len(names):
        raise ValueError(f"{argument} ({names}) must be distinct names out of {known}; remove any other.")
    return names


SHAPES = World()
"""The default world: 64 px, six colours, five shapes, one to four objects."""

SHAPES_MINI = World(
    canvas=32,
    colors=("red", "green", "blue"),
    shapes=("circle", "square", "triangle"),
    max_count=2,
    half_extents={1: (5.0, 8.0), 2: (5.0, 8.0)},
)
"""A world for fast tests: 32 px, three colours, three shapes, one or two objects."""

WORLDS: dict[str, World] = {"shapes": SHAPES, "shapes-mini": SHAPES_MINI}


def get_world(name: str | World) -> World:
    """Returns the preset world called `name`, or the world itself.

    Raises:
        ValueError: If there is no such preset.
    """
    if isinstance(name, World):
        return name
    if name not in WORLDS:
        raise ValueError(f"name ({name!r}) is not a world; choose one of {sorted(WORLDS)}.")
    return WORLDS[name]
