"""The grammar of editing instructions: listing, splitting and parsing every instruction of a world."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import get_args

from blip3o.shapes.captions import ObjectSpec, Split, is_held_out, noun
from blip3o.shapes.world import BACKGROUNDS, COLORS, World

EDIT_KINDS: tuple[str, ...] = ("recolor", "remove", "add", "replace", "background")
"""What an edit changes."""

OTHER_KINDS: tuple[str, ...] = ("reconstruct", "combine")
"""Kinds that are drawn only where they are asked for: an edit that changes nothing, and one with two references."""

ALL_KINDS: tuple[str, ...] = EDIT_KINDS + OTHER_KINDS

RECONSTRUCT = "keep the image unchanged"
COMBINE = "put the shape of the first image into the second"


@dataclass(frozen=True)
class EditSpec:
    """What an instruction asks for.

    Attributes:
        instruction: The instruction itself.
        kind: One of `ALL_KINDS`.
        object: The object that is recoloured, removed, replaced or added; its colour is None where the instruction
            names none. None for the other kinds.
        new: The new colour, shape or background of `recolor`, `replace` and `background`; else None.
    """

    instruction: str
    kind: str
    object: ObjectSpec | None = None
    new: str | None = None


def kind_lack(world: World, kind: str) -> str:
    """Why a world can not hold a kind of edit, in words; empty where it can.

    Raises:
        ValueError: If `kind` is unknown.
    """
    if kind not in ALL_KINDS:
        raise ValueError(f"kind ({kind!r}) is no kind of edit; choose one of {ALL_KINDS}.")
    needs = {"recolor": (world.colors, "colours"), "replace": (world.shapes, "shapes")}
    if kind in needs and len(needs[kind][0]) < 2:
        return f"it needs two {needs[kind][1]} and there is one, {needs[kind][0][0]}"
    if not source_counts(world, kind):
        change = "one object is to be left" if kind == "remove" else "one object is to be added"
        return f"its scenes hold {world.object_counts} objects, and {change}"
    if kind == "remove" and len(world.colors) * len(world.shapes) < 2:
        return "all its objects are alike, so that none can be named"
    return ""


def source_counts(world: World, kind: str) -> tuple[int, ...]:
    """Numbers of objects that the picture to be edited may hold: those of the world that leave room for the edit.

    Something else must be left of what is removed from, and an added object must not exceed the world's numbers.
    """
    counts = world.object_counts
    if kind == "remove":
        return tuple(count for count in counts if count > 1)
    if kind in ("add", "combine"):
        return tuple(count for count in counts if count + 1 in counts)
    return counts


@cache
def instructions(world: World, kind: str, split: Split = "all") -> tuple[str, ...]:
    """All instructions of one kind, in a fixed order.

    An instruction that names a colour belongs to training or to the held-out ones, by `is_held_out`, as captions do.
    One without belongs to both; there the scenes decide (`blip3o.shapes.edits.is_held_out_edit`).

    Args:
        world: The world whose colours and shapes are used.
        kind: One of `ALL_KINDS`.
        split: "train", "held_out", or "all".

    Raises:
        ValueError: If the world can not hold the kind, or `kind` or `split` is unknown.
    """
    if lack := kind_lack(world, kind):
        raise ValueError(f"kind ({kind!r}) can not be held by this world: {lack}; leave the kind out.")
    if split not in get_args(Split):
        raise ValueError(f"split ({split!r}) is unknown; choose one of {get_args(Split)}.")
    every = _all_instructions(world, kind)
    return tuple(one for one in every if split == "all" or _in_split(one, split))


def edit_kinds(world: World, split: Split = "all") -> tuple[str, ...]:
    """The members of `EDIT_KINDS` that a world holds and has instructions of in a split."""
    return tuple(kind for kind in EDIT_KINDS if not kind_lack(world, kind) and instructions(world, kind, split))


def names_color(instruction: str) -> bool:
    """Whether an instruction names one of `COLORS`; the names of backgrounds are none of them."""
    return any(word in COLORS for word in instruction.split(" "))


def _in_split(instruction: str, split: Split) -> bool:
    return not names_color(instruction) or is_held_out(instruction) == (split == "held_out")


def _all_instructions(world: World, kind: str) -> tuple[str, ...]:
    if kind == "reconstruct":
        return (RECONSTRUCT,)
    if kind == "combine":
        return (COMBINE,)
    if kind == "background":
        return tuple(f"make the background {name}" for name in BACKGROUNDS)
    colored = [(color, shape) for color in world.colors for shape in world.shapes]
    if kind == "add":
        return tuple(f"add {noun(shape, color)}" for color, shape in colored)
    # Without its colour an object can be named where no other has its shape.
    alone = len(world.shapes) > 1 or 1 in source_counts(world, kind)
    named = [(None, shape) for shape in world.shapes if alone] + colored
    if kind == "remove":
        return tuple(f"remove {_the(shape, color)}" for color, shape in named)
    if kind == "recolor":
        return tuple(
            f"make {_the(shape, color)} {new}" for color, shape in named for new in world.colors if new != color
        )
    return tuple(
        f"replace {_the(shape, color)} with {noun(new)}"
        for color, shape in named
        for new in world.shapes
        if new != shape
    )


def _the(shape: str, color: str | None) -> str:
    return f"the {shape}" if color is None else f"the {color} {shape}"


_PATTERNS: tuple[tuple[str, str], ...] = (
    ("background", r"make the background (?P<new>\w+)"),
    ("recolor", r"make the (?:(?P<color>\w+) )?(?P<shape>\w+) (?P<new>\w+)"),
    ("remove", r"remove the (?:(?P<color>\w+) )?(?P<shape>\w+)"),
    ("add", r"add an? (?P<color>\w+) (?P<shape>\w+)"),
    ("replace", r"replace the (?:(?P<color>\w+) )?(?P<shape>\w+) with an? (?P<new>\w+)"),
    ("reconstruct", re.escape(RECONSTRUCT)),
    ("combine", re.escape(COMBINE)),
)


@lru_cache(maxsize=65536)
def parse_instruction(instruction: str, world: World) -> EditSpec:
    """Reads an instruction of the world's grammar.

    Raises:
        ValueError: If it is outside the grammar, names what the world lacks, or asks for a kind of edit or a change
            (such as a colour into itself) that there is none of.
    """
    found = ((kind, re.fullmatch(pattern, instruction)) for kind, pattern in _PATTERNS)
    kind, match = next(((kind, match) for kind, match in found if match), ("", None))
    if match is None:
        raise _unreadable(instruction, "it has none of the forms of an edit")
    if lack := kind_lack(world, kind):
        raise _unreadable(instruction, f"this world can not hold {kind!r}: {lack}")
    if instruction not in instructions(world, kind):
        raise _unreadable(
            instruction,
            f"colours are {world.colors}, shapes {world.shapes}, backgrounds {tuple(BACKGROUNDS)}, and something has "
            "to change",
        )
    words = match.groupdict()
    named = None if words.get("shape") is None else ObjectSpec(words["shape"], words.get("color"))
    return EditSpec(instruction, kind, named, words.get("new"))


def _unreadable(instruction: str, why: str) -> ValueError:
    return ValueError(
        f"instruction ({instruction!r}) cannot be read: {why}; write it like 'make the circle green' or 'remove the "
        "red star'."
    )
