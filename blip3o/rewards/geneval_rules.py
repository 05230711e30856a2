"""GenEval's rules, on what a detector found: whether a picture shows what its prompt asks for.

The rules of the benchmark (Ghosh et al., 2023) as pure functions. Three forms: `official` asks for at least the number
of objects, `strict` for exactly that number, `soft` is a mean of terms in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Form = Literal["official", "strict", "soft"]
FORMS = ("official", "strict", "soft")
MAX_OBJECTS = 16
"""Objects of one class that count at most."""
SHRINK = 0.1
"""Share of both boxes' sizes by which the offset of their centres shrinks."""


@dataclass(frozen=True)
class Found:
    """An object that a detector found.

    Attributes:
        box: left, top, right and bottom edge in pixels, y pointing down.
        score: confidence in [0, 1].
        color: name of its colour, None where nobody asked.
    """

    box: tuple[float, float, float, float]
    score: float = 1.0
    color: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Whether a picture is right, a score in [0, 1], and what is wrong in words."""

    correct: bool
    score: float
    reason: str


Objects: TypeAlias = Mapping[str, Sequence[Found]]
Relations: TypeAlias = Callable[[Found, Found], set[str]]


def confidence_threshold(tag: str) -> float:
    """What a detection's confidence must exceed: 0.9 for counting, else 0.3."""
    return 0.9 if tag == "counting" else 0.3


def kept(found: Sequence[Found], tag: str) -> list[Found]:
    """The detections of one class that count: confident enough, most confident first, at most `MAX_OBJECTS`."""
    sure = [one for one in found if one.score > confidence_threshold(tag)]
    return sorted(sure, key=lambda one: -one.score)[:MAX_OBJECTS]


def relations(first: Found, second: Found) -> set[str]:
    """Where `first` lies as seen from `second`: any of left of, right of, above, below.

    The offset of the centres shrinks on each axis by `SHRINK` times the sum of both sizes, never past zero, and is
    divided by the length of the unshrunk offset; more than half of that along an axis is a relation.
    """
    axes = []
    for axis in (0, 1):
        (a_low, a_high), (b_low, b_high) = (one.box[axis::2] for one in (first, second))
        offset = (a_low + a_high - b_low - b_high) / 2
        shrunk = max(abs(offset) - SHRINK * (abs(a_high - a_low) + abs(b_high - b_low)), 0.0)
        axes.append((offset, math.copysign(shrunk, offset)))
    if all(abs(shrunk) < 1e-3 for _, shrunk in axes):
        return set()
    length = math.hypot(*(offset for offset, _ in axes))
    dx, dy = (shrunk / length for _, shrunk in axes)
    seen = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in seen.items() if holds}


def judge(
    objects: Objects, metadata: Mapping[str, Any], form: Form = "official", relation: Relations = relations
) -> Outcome:
    """Judges a picture.

    Args:
        objects: for each class, the detections that count (see `kept`), most confident first. Where a colour is asked
            for, they have theirs.
        metadata: `tag`, `include` and perhaps `exclude`, as in a line of GenEval's `evaluation_metadata.jsonl`.
        form: `official`, `strict` or `soft`; the last is correct where its score is 1.
        relation: names the relations that hold between two objects.

    Raises:
        ValueError: if `form` is unknown, or `metadata` lacks `include`.
    """
    if form not in FORMS:
        raise ValueError(f"form ({form!r}) must be one of {FORMS}.")
    if not metadata.get("include"):
        raise ValueError(f"metadata ({dict(metadata)}) must list what the picture includes, as GenEval's does.")
    if form == "soft":
        return _soft(objects, metadata, relation)
    return _hard(objects, metadata, relation, exact=form == "strict")


def _hard(objects: Objects, metadata: Mapping[str, Any], relation: Relations, *, exact: bool) -> Outcome:
    """All or nothing: at least, or exactly, the objects asked for."""
    reasons: list[str] = []
    groups: list[Sequence[Found] | None] = []
    for wanted in metadata["include"]:
        name, count = wanted["class"], wanted["count"]
        found = objects.get(name, ())
        number = len(found)
        found = found if exact else found[:count]
        wrong = ""
        if number != count if exact else number < count:
            wrong = f"expected {name}{'=' if exact else '>='}{count}, found {number}"
        elif "color" in wanted and sum(one.color == wanted["color"] for one in found) < count:
            wrong = f"expected {wanted['color']} {name}, found {_colors(found)}"
        elif "position" in wanted and not _placed(found, wanted["position"], groups, relation):
            wrong = f"expected {name} {wanted['position'][0]} target, found none so"
        groups.append(None if wrong else found)
        reasons.extend([wrong] if wrong else [])
    for unwanted in metadata.get("exclude", ()):
        number = len(objects.get(unwanted["class"], ()))
        if number >= unwanted["count"]:
            reasons.append(f"expected {unwanted['class']}<{unwanted['count']}, found {number}")
    return Outcome(not reasons, float(not reasons), "\n".join(reasons))


def _soft(objects: Objects, metadata: Mapping[str, Any], relation: Relations) -> Outcome:
    """The mean of one term for each number, colour and position that is asked for."""
    terms: list[float] = []
    reasons: list[str] = []
    groups: list[Sequence[Found] | None] = []
    for wanted in metadata["include"]:
        name, count = wanted["class"], wanted["count"]
        found = objects.get(name, ())
        terms.append(_nearness(len(found), count))
        if len(found) != count:
            reasons.append(f"expected {name}={count}, found {len(found)}")
        if "color" in wanted:
            right = sum(one.color == wanted["color"] for one in found)
            terms.append(_nearness(right, count))
            if right != count:
                reasons.append(f"expected {wanted['color']} {name}, found {_colors(found)}")
        if "position" in wanted:
            placed = _placed(found, wanted["position"], groups, relation)
            terms.append(float(placed))
            if not placed:
                reasons.append(f"expected {name} {wanted['position'][0]} target, found none so")
        groups.append(found[:count] or None)
    score = sum(terms) / len(terms)
    return Outcome(not reasons, score, "\n".join(reasons))


def _nearness(found: int, wanted: int) -> float:
    return max(0.0, 1 - abs(wanted - found) / wanted)


def _placed(
    found: Sequence[Found], position: Sequence[Any], groups: Sequence[Sequence[Found] | None], relation: Relations
) -> bool:
    """Whether every object stands as asked to every object of the group it refers to."""
    name, index = position
    target = groups[index]
    return bool(found) and target is not None and all(name in relation(one, other) for one in found for other in target)


def _colors(found: Sequence[Found]) -> str:
    return ", ".join(str(one.color) for one in found) or "none"
