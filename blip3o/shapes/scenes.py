"""Scenes: which objects a picture holds and where, drawn from a world's captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from blip3o.shapes.captions import Split, captions, parse_caption
from blip3o.shapes.geometry import EXTENTS
from blip3o.shapes.world import World

Background = Literal["white", "black"]
Box = tuple[float, float, float, float]

_BLOCK = 32  # layouts drawn at a time
_MAX_BLOCKS = 2000


@dataclass(frozen=True)
class ShapeObject:
    """One object of a scene.

    Attributes:
        shape: One of `SHAPE_NAMES`.
        color: One of `COLORS`.
        x: Centre of its bounding box, pixels from the left edge (pixel i spans i to i + 1).
        y: Centre of its bounding box, pixels from the top edge.
        h: Half-extent, pixels.
    """

    shape: str
    color: str
    x: float
    y: float
    h: float


@dataclass(frozen=True)
class Scene:
    """A picture's content: a background, objects in the caption's order, and the caption's tag."""

    background: Background
    objects: tuple[ShapeObject, ...]
    tag: str
    caption: str


def bounding_box(obj: ShapeObject) -> Box:
    """Left, top, right and bottom of an object, in pixels."""
    width, height = EXTENTS[obj.shape]
    return (obj.x - width * obj.h, obj.y - height * obj.h, obj.x + width * obj.h, obj.y + height * obj.h)


def box_gap(a: Box, b: Box) -> float:
    """Free pixels between two boxes along the axis that separates them best; negative if they overlap."""
    return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])


def holds(relation: str, dx: float, dy: float, margin: float = 0.0) -> bool:
    """Whether an object stands in `relation` to another that is `dx`, `dy` pixels right of and below it.

    The named axis must be the larger one: the offset along it must exceed the offset across it by
    more than zero and by at least `margin` pixels.
    """
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    excess = along - abs(across)
    return excess > 0 and excess >= margin


def sample_scene(
    world: World,
    seed: int,
    index: int,
    *,
    split: Split = "train",
    tag: str | None = None,
    tag_weights: Mapping[str, float] | None = None,
) -> Scene:
    """Draws the scene number `index` of the stream `seed`: a pure function of its arguments.

    Args:
        world: Where the scene comes from.
        seed: Stream of scenes, non-negative.
        index: Number in the stream, non-negative.
        split: Captions to draw from, each equally likely within its tag.
        tag: The only tag to draw; by default each is equally likely.
        tag_weights: Relative frequency of each tag; a tag it lacks is never drawn.

    Raises:
        ValueError: If both `tag` and `tag_weights` are given, a tag is unknown, weights are not
            positive, or the split has no captions to draw.
    """
    rng = np.random.default_rng([seed, index])
    if tag is None:
        tag = _draw_tag(world, split, tag_weights, rng)
    elif tag_weights is not None:
        raise ValueError(f"tag ({tag!r}) and tag_weights ({tag_weights}) exclude each other; drop one.")
    table = captions(world, tag, split)
    if not table:
        raise ValueError(f"split ({split!r}) has no captions of tag {tag!r} in this world; choose another.")
    return scene_for_caption(world, table[int(rng.integers(len(table)))], rng)


def _draw_tag(world: World, split: Split, tag_weights: Mapping[str, float] | None, rng: np.random.Generator) -> str:
    if tag_weights is None:
        tags = _tags_with_captions(world, split)
        return tags[int(rng.integers(len(tags)))]
    unknown = [name for name in tag_weights if name not in world.tags]
    if unknown:
        raise ValueError(f"tag_weights names {unknown}, which are not tags of this world; use {world.tags}.")
    return draw_name("tag_weights", tag_weights, world.tags, rng)


def draw_name(argument: str, weights: Mapping[str, float], names: Sequence[str], rng: np.random.Generator) -> str:
    """Draws one of `names` by its weight; a name without one is never drawn.

    Raises:
        ValueError: Naming `argument`, if weights are not finite, negative or all zero.
    """
    values = [float(weights.get(name, 0.0)) for name in names]
    if not (min(values) >= 0 and 0 < sum(values) < float("inf")):
        raise ValueError(f"{argument} ({dict(weights)}) must be finite, non-negative and not all zero.")
    edges = np.cumsum(values)
    return names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


@cache
def _tags_with_captions(world: World, split: Split) -> tuple[str, ...]:
    tags = tuple(tag for tag in world.tags if captions(world, tag, split))
    if not tags:
        raise ValueError(f"split ({split!r}) has no captions in this world; choose another.")
    return tags


def scene_for_caption(world: World, caption: str, rng: np.random.Generator) -> Scene:
    """Draws a scene that a caption describes: background, free colours, sizes and places.

    Args:
        world: Whose layout rules hold.
        caption: A caption of the world's grammar.
        rng: Source of the randomness; it is advanced.

    Raises:
        ValueError: If the caption cannot be read.
    """
    spec = parse_caption(caption, world)
    background: Background = "black" if rng.integers(2) else "white"
    kinds = [kind for kind in spec.objects for _ in range(kind.count)]
    colors = [kind.color or world.colors[int(rng.integers(len(world.colors)))] for kind in kinds]
    layout = draw_layout(world, [EXTENTS[kind.shape] for kind in kinds], rng, relation=spec.relation)
    objects = tuple(
        ShapeObject(kind.shape, color, x, y, h) for kind, color, (x, y, h) in zip(kinds, colors, layout, strict=True)
    )
    return Scene(background, objects, spec.tag, caption)


def draw_layout(
    world: World,
    extents: Sequence[tuple[float, float]],
    rng: np.random.Generator,
    *,
    relation: str | None = None,
    sizes_of: int | None = None,
) -> list[tuple[float, float, float]]:
    """Draws whole layouts until one obeys the rules; sizes shrink slowly so that one always comes.

    Args:
        world: Whose layout rules hold.
        extents: Half-width and half-height of each object, in units of its half-extent.
        rng: Source of the randomness; it is advanced.
        relation: Where the first of two objects lies as seen from the second; anywhere when None.
        sizes_of: Number of objects whose range of sizes is used, where it is another than that of `extents`.

    Returns:
        For each object x and y of its centre and its half-extent, in pixels.
    """
    low, high = world.half_extents[sizes_of or len(extents)]
    for block in range(_MAX_BLOCKS):
        span = (high - low) * 0.98**block
        for draw in rng.random((_BLOCK, len(extents), 3)).tolist():
            layout = _place(world, relation, extents, draw, low, span)
            if layout is not None:
                return layout
    raise RuntimeError(f"no layout found for {len(extents)} object(s); the world's sizes leave too little room.")


def _place(
    world: World,
    relation: str | None,
    extents: Sequence[tuple[float, float]],
    draw: list[list[float]],
    low: float,
    span: float,
) -> list[tuple[float, float, float]] | None:
    layout: list[tuple[float, float, float]] = []
    boxes: list[Box] = []
    for (width, height), (u, v, size) in zip(extents, draw, strict=True):
        h = low + span * size
        half_x, half_y = width * h, height * h
        x = half_x + (world.canvas - 2 * half_x) * u
        y = half_y + (world.canvas - 2 * half_y) * v
        box = (x - half_x, y - half_y, x + half_x, y + half_y)
        if any(box_gap(box, other) < world.gap for other in boxes):
            return None
        layout.append((x, y, h))
        boxes.append(box)
    if relation is not None:
        (x0, y0, _), (x1, y1, _) = layout
        if not holds(relation, x1 - x0, y1 - y0, world.position_margin):
            return None
    return layout
