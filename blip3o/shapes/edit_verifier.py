"""The exact verifier of edits: whether what was asked for is there, and whether all else stayed.

Two questions, asked apart:

- *success*: the picture holds exactly the objects of the expected scene, by shape and colour, with nothing extra; a
  recoloured object, and one put in another's place, stands where that one stood (centres within `PLACE_TOLERANCE`); an
  added one may stand anywhere; and for `background` the background is the one asked for.
- *consistency*: each untouched object is there with its shape, its colour and its place (centres within
  `PLACE_TOLERANCE`), and for all kinds but `background` the background is as it was.

Besides, the mean absolute error outside the edited region says how well the rest stayed, pixel by pixel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from blip3o.shapes.edits import ShapesEdit, edit_scene
from blip3o.shapes.render import render
from blip3o.shapes.scenes import ShapeObject
from blip3o.shapes.verifier import Detection, Images, Observation, detect
from blip3o.shapes.world import World

PLACE_TOLERANCE = 2.0
"""Largest distance, in pixels, between the centres of an object that stayed in its place."""

DILATION = 2
"""Pixels by which an edited region is widened on all sides before the rest is compared."""


@dataclass(frozen=True)
class EditVerdict:
    """How an edit turned out.

    Attributes:
        success: Whether the picture holds what was asked for.
        reason: Why not; empty if it does.
        consistent: Whether all else stayed.
        drift: What did not; empty if all did.
        error: Mean absolute error outside the edited region, in [0, 1].
        detections: The objects that were found.
        background: The background that was found, or None.
    """

    success: bool
    reason: str
    consistent: bool
    drift: str
    error: float
    detections: tuple[Detection, ...]
    background: str | None


def verify_edits(images: Images, edits: Sequence[ShapesEdit], world: World) -> list[EditVerdict]:
    """Judges edited pictures from their pixels alone.

    Args:
        images: Batch of RGB pictures, uint8, (B, canvas, canvas, 3), or a sequence of single ones.
        edits: What was asked for, one a picture.
        world: Where the edits come from.

    Raises:
        ValueError: If the pictures have another type or size, or their number is another.
    """
    if len(images) != len(edits):
        raise ValueError(f"edits ({len(edits)}) must be as many as images ({len(images)}); pair them.")
    pictures = [np.asarray(image) for image in images]
    seen = detect(pictures, world)
    return [_judge(*one, world) for one in zip(pictures, edits, seen, strict=True)]


def _judge(image: NDArray[np.uint8], edit: ShapesEdit, seen: Observation, world: World) -> EditVerdict:
    stayed = list(edit.untouched)
    placed = [] if edit.made is None or edit.adds else [edit.made]
    matches = _matched([*stayed, *placed], seen.detections)
    reasons = [seen.defect] if seen.defect else _missing_and_extra(edit, seen)
    drifts = [_displaced(obj, match) for obj, match in zip(stayed, matches, strict=False)]
    if not reasons:
        reasons = [_displaced(obj, match) for obj, match in zip(placed, matches[len(stayed) :], strict=True)]
    if edit.kind != "background" and seen.background != edit.source.background:
        drifts.append(f"the background was {edit.source.background} and is {seen.background or 'neither'}")
    reason, drift = ("; ".join(filter(None, told)) for told in (reasons, drifts))
    return EditVerdict(
        success=not reason,
        reason=reason,
        consistent=not drift,
        drift=drift,
        error=error_outside(image, edit, edited_region(edit, world, seen.detections), world),
        detections=seen.detections,
        background=seen.background,
    )


def _missing_and_extra(edit: ShapesEdit, seen: Observation) -> list[str]:
    """What the expected scene holds more or less than the picture."""
    wanted = Counter(f"{obj.color} {obj.shape}" for obj in edit.target.objects)
    found = Counter(f"{obj.color} {obj.shape}" for obj in seen.detections)
    reasons = []
    if missing := wanted - found:
        reasons.append(f"expected {_counted(missing)}, found none")
    if extra := found - wanted:
        reasons.append(f"expected nothing else, found {_counted(extra)}")
    if edit.kind == "background" and seen.background != edit.target.background:
        reasons.append(f"expected a {edit.target.background} background, found {seen.background}")
    return reasons


def _counted(names: Counter[str]) -> str:
    return " and ".join(f"{count} x {name}" if count > 1 else name for name, count in sorted(names.items()))


def _matched(objects: Sequence[ShapeObject], detections: Sequence[Detection]) -> list[Detection | None]:
    """For each object the detection that is it, each used once: of its shape and colour, and as many near as can be."""
    far = 1e6  # above any sum of distances
    cost = np.full((len(objects), len(detections)), far**2)
    for row, obj in enumerate(objects):
        for column, found in enumerate(detections):
            if (found.shape, found.color) == (obj.shape, obj.color):
                distance = _distance(obj, found)
                cost[row, column] = distance if distance <= PLACE_TOLERANCE else far + distance
    matches: list[Detection | None] = [None] * len(objects)
    for row, column in zip(*linear_sum_assignment(cost), strict=True):
        if cost[row, column] < far**2:
            matches[row] = detections[column]
    return matches


def _distance(obj: ShapeObject, found: Detection) -> float:
    return math.hypot(found.x - obj.x, found.y - obj.y)


def _displaced(obj: ShapeObject, match: Detection | None) -> str:
    """How an object's match differs from where it has to be, in words; empty where it is there."""
    if match is None:
        return f"the {obj.color} {obj.shape} is gone"
    distance = _distance(obj, match)
    return f"the {obj.color} {obj.shape} is {distance:.1f} pixels off" if distance > PLACE_TOLERANCE else ""


def edited_region(edit: ShapesEdit, world: World, detections: Sequence[Detection] = ()) -> NDArray[np.bool_]:
    """The pixels that an edit may change.

    For `recolor`, `remove` and `replace` these are the pixels where the renders of source and target differ, widened
    by `DILATION` on all sides; for `reconstruct` there are none. For `add` and `combine` they are the pixels that the
    object touches where it was *found* (of those of its shape and colour that are no untouched object the best
    fitting), widened likewise; none where it was not found. For `background` they are all but the pixels that objects
    cover wholly, without widening: the objects are what must stay.

    Args:
        edit: The edit.
        world: Where it comes from.
        detections: What was found in the picture; only needed where an object is added.

    Returns:
        True in the region, (canvas, canvas).
    """
    source = render(edit.source, world)
    if not edit.adds:
        changed = np.asarray((source != render(edit.target, world)).any(axis=-1))
        return changed if edit.kind == "background" else _widened(changed)
    made = edit.made
    assert made is not None, "an object is added"
    own = [id(match) for match in _matched(edit.untouched, detections)]
    new = [one for one in detections if (one.shape, one.color) == (made.shape, made.color) and id(one) not in own]
    if not new:
        return np.zeros(source.shape[:2], dtype=bool)
    best = max(new, key=lambda one: one.score)
    found = ShapeObject(best.shape, best.color, best.x, best.y, best.h)
    empty = render(edit_scene(edit.source.background, ()), world)
    touched = render(edit_scene(edit.source.background, (found,)), world) != empty
    return _widened(np.asarray(touched.any(axis=-1)))


def _widened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    side = 2 * DILATION + 1
    return np.asarray(ndimage.binary_dilation(mask, structure=np.ones((side, side), dtype=bool)))


def error_outside(image: NDArray[np.uint8], edit: ShapesEdit, region: NDArray[np.bool_], world: World) -> float:
    """Mean absolute difference between a picture and the source's render outside a region, in [0, 1].

    The mean is over pixels and channels; it is 0 where the region leaves nothing to compare.

    Args:
        image: The edited picture, uint8, (canvas, canvas, 3).
        edit: The edit.
        region: True where it may differ, (canvas, canvas).
        world: Where the edit comes from.
    """
    outside = ~region
    if not outside.any():
        return 0.0
    difference = image[outside].astype(np.float64) - render(edit.source, world)[outside]
    return float(np.abs(difference).mean() / 255)
