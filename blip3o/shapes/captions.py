"""The caption grammar: listing, splitting, parsing and describing every caption of a world."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import numpy as np

from blip3o.shapes.world import COLORLESS_TAGS, COLORS, COUNT_WORDS, RELATIONS, TAGS, World

Split = Literal["train", "held_out", "all"]

_COUNTS = {word: count for count, word in COUNT_WORDS.items()}


@dataclass(frozen=True)
class ObjectSpec:
    """A kind of object a caption asks for: `count` of `shape`, in `color` (None leaves it free)."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class CaptionSpec:
    """What a caption asks for.

    Attributes:
        caption: The caption itself.
        tag: Its task, one of `TAGS`.
        objects: The kinds of object, in the caption's order.
        relation: For `position`, where the first object lies as seen from the second; else None.
    """

    caption: str
    tag: str
    objects: tuple[ObjectSpec, ...]
    relation: str | None = None

    @property
    def num_objects(self) -> int:
        """Number of objects in a scene of this caption."""
        return sum(kind.count for kind in self.objects)


def is_held_out(caption: str) -> bool:
    """Whether a caption is kept from training: a tenth of those that name a colour, by md5.

    A caption without a colour belongs to training and to evaluation alike, and is never held out.
    """
    if not any(color in caption.split() for color in COLORS):
        return False
    return int(hashlib.md5(caption.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


@cache
def captions(world: World, tag: str, split: Split = "all") -> tuple[str, ...]:
    """All captions of one tag, in a fixed order.

    Args:
        world: The world whose colours, shapes and counts are used.
        tag: One of the world's tags.
        split: "train", "held_out" (disjoint), or "all". Tags without colour are whole in each.

    Raises:
        ValueError: If the world lacks `tag`, or `split` is unknown.
    """
    if tag not in world.tags:
        raise ValueError(f"tag ({tag!r}) is not one of this world's tags; choose one of {world.tags}.")
    if split not in get_args(Split):
        raise ValueError(f"split ({split!r}) is unknown; choose one of {get_args(Split)}.")
    every = _all_captions(world, tag)
    if split == "all" or tag in COLORLESS_TAGS:
        return every
    return tuple(caption for caption in every if is_held_out(caption) == (split == "held_out"))


def _all_captions(world: World, tag: str) -> tuple[str, ...]:
    colored = [(color, shape) for color in world.colors for shape in world.shapes]
    if tag == "single_object":
        return tuple(noun(shape) for shape in world.shapes)
    if tag == "two_object":
        return tuple(f"{noun(a)} and {noun(b)}" for a in world.shapes for b in world.shapes if a != b)
    if tag == "counting":
        words = [COUNT_WORDS[count] for count in range(2, world.max_count + 1)]
        return tuple(f"{word} {color} {_plural(shape)}" for word in words for color, shape in colored)
    if tag == "colors":
        return tuple(noun(shape, color) for color, shape in colored)
    pairs = [(a, b) for a in colored for b in colored if a[1] != b[1]]
    if tag == "position":
        return tuple(f"{noun(a[1], a[0])} {relation} {noun(b[1], b[0])}" for a, b in pairs for relation in RELATIONS)
    return tuple(f"{noun(a[1], a[0])} and {noun(b[1], b[0])}" for a, b in pairs if a[0] != b[0])


def noun(shape: str, color: str | None = None) -> str:
    """An object with its article, such as `an orange circle`."""
    phrase = shape if color is None else f"{color} {shape}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


@lru_cache(maxsize=65536)
def parse_caption(caption: str, world: World) -> CaptionSpec:
    """Reads a caption of the world's grammar.

    Raises:
        ValueError: If the caption is outside the grammar, or asks for something the world lacks.
    """
    spec = _parse(caption, world)
    if spec.tag not in world.tags:
        raise _unreadable(caption, f"its task {spec.tag!r} is not one of this world's {world.tags}")
    return spec


def _parse(caption: str, world: World) -> CaptionSpec:
    words = caption.split(" ")
    if words[0] in _COUNTS:
        return _parse_count(caption, words, world)
    for joint in (*RELATIONS, "and"):
        if f" {joint} " in caption:
            first, second = caption.split(f" {joint} ", 1)
            pair = (_parse_noun(caption, first, world), _parse_noun(caption, second, world))
            return _join(caption, pair, joint)
    kind = _parse_noun(caption, caption, world)
    return CaptionSpec(caption, "single_object" if kind.color is None else "colors", (kind,))


def _join(caption: str, pair: tuple[ObjectSpec, ObjectSpec], joint: str) -> CaptionSpec:
    first, second = pair
    if first.shape == second.shape:
        raise _unreadable(caption, "its two objects must be different shapes")
    if (first.color is None) != (second.color is None):
        raise _unreadable(caption, "it must name a colour for both objects or for neither")
    if joint != "and":
        if first.color is None:
            raise _unreadable(caption, "a spatial relation needs the colours of both objects")
        return CaptionSpec(caption, "position", pair, joint)
    if first.color is None:
        return CaptionSpec(caption, "two_object", pair)
    if first.color == second.color:
        raise _unreadable(caption, "its two objects must have different colours")
    return CaptionSpec(caption, "color_attr", pair)


def _parse_count(caption: str, words: list[str], world: World) -> CaptionSpec:
    count = _COUNTS[words[0]]
    if count > world.max_count:
        raise _unreadable(caption, f"this world counts to {world.max_count}")
    shapes = {_plural(shape): shape for shape in world.shapes}
    if len(words) != 3 or words[1] not in world.colors or words[2] not in shapes:
        raise _unreadable(caption, f"a colour {world.colors} and one of {tuple(shapes)} follow the number")
    return CaptionSpec(caption, "counting", (ObjectSpec(shapes[words[2]], words[1], count),))


def _parse_noun(caption: str, phrase: str, world: World) -> ObjectSpec:
    words = phrase.split(" ")
    shape, color = words[-1], words[1] if len(words) == 3 else None
    if shape not in world.shapes or (color is not None and color not in world.colors):
        words_known = f"perhaps a colour {world.colors}, and one of {world.shapes}"
        raise _unreadable(caption, f"{phrase!r} must be an article, {words_known}")
    if phrase != noun(shape, color):
        raise _unreadable(caption, f"{phrase!r} should read {noun(shape, color)!r}")
    return ObjectSpec(shape, color)


def _unreadable(caption: str, why: str) -> ValueError:
    return ValueError(
        f"caption ({caption!r}) cannot be read: {why}; write it like 'a red circle left of a blue square'."
    )


def metadata(caption: str, world: World) -> dict[str, Any]:
    """A caption in the form of a line of GenEval's `evaluation_metadata.jsonl`.

    As there, a relation's reference object comes first in `include`, the other refers to it by
    index, and counting excludes one object more than asked.

    Raises:
        ValueError: If the caption cannot be read.
    """
    spec = parse_caption(caption, world)
    include: list[dict[str, Any]] = []
    for kind in reversed(spec.objects) if spec.relation else spec.objects:
        entry: dict[str, Any] = {"class": kind.shape, "count": kind.count}
        if kind.color is not None:
            entry["color"] = kind.color
        include.append(entry)
    if spec.relation:
        include[1]["position"] = [spec.relation, 0]
    line: dict[str, Any] = {"tag": spec.tag, "include": include}
    if spec.tag == "counting":
        line["exclude"] = [{"class": kind.shape, "count": kind.count + 1} for kind in spec.objects]
    return {**line, "prompt": caption}


def evaluation_captions(world: World, num_captions: int, seed: int) -> list[str]:
    """Draws captions to evaluate on, a pure function of its arguments.

    Tags take turns, so their numbers differ by at most one. Within a tag captions come in random
    order and repeat only once all were used. Tags that name colours use held-out captions only; a
    tag of a small world that has none is left out.

    Raises:
        ValueError: If `num_captions` is below one, or no tag has captions to evaluate on.
    """
    if num_captions < 1:
        raise ValueError(f"num_captions ({num_captions}) must be at least 1; ask for more.")
    tables = [(TAGS.index(tag), captions(world, tag, "held_out")) for tag in world.tags]
    tables = [(key, table) for key, table in tables if table]
    if not tables:
        raise ValueError(f"tags ({world.tags}) have no held-out captions; add colours, shapes or tags.")
    per_tag = -(-num_captions // len(tables))
    columns = []
    for key, table in tables:
        rng = np.random.default_rng([seed, key])
        order: list[int] = []
        while len(order) < per_tag:
            order.extend(rng.permutation(len(table)).tolist())
        columns.append([table[i] for i in order[:per_tag]])
    return [caption for turn in zip(*columns, strict=True) for caption in turn][:num_captions]
