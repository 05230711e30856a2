"""Results of edits: one row an image, the scores with their 95 % intervals, and panels to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from blip3o.shapes.edit_verifier import EditVerdict, edited_region
from blip3o.shapes.edits import ShapesEdit, edit_record
from blip3o.shapes.geneval import summary
from blip3o.shapes.instructions import ALL_KINDS
from blip3o.shapes.render import render
from blip3o.shapes.world import World


def edit_rows(
    verdicts: Sequence[EditVerdict], edits: Sequence[ShapesEdit], filenames: Sequence[str]
) -> list[dict[str, Any]]:
    """Writes verdicts as rows in the manner of GenEval's result file, ready for JSON.

    Args:
        verdicts: One an image.
        edits: What was asked for in each.
        filenames: The file of each image.

    Returns:
        Rows with the keys filename, tag (the kind of edit), prompt (the instruction), correct (success), reason,
        consistent, drift, mae, metadata (`edit_record`) and details; the last two are JSON text.

    Raises:
        ValueError: If the three sequences differ in length.
    """
    lengths = (len(verdicts), len(edits), len(filenames))
    if len(set(lengths)) != 1:
        raise ValueError(f"verdicts, edits and filenames {lengths} must be of one length; pass one of each an image.")
    rows = []
    for verdict, edit, filename in zip(verdicts, edits, filenames, strict=True):
        detections = [asdict(found) for found in verdict.detections]
        rows.append(
            {
                "filename": str(filename),
                "tag": edit.kind,
                "prompt": edit.instruction,
                "correct": verdict.success,
                "reason": verdict.reason,
                "consistent": verdict.consistent,
                "drift": verdict.drift,
                "mae": verdict.error,
                "metadata": json.dumps(edit_record(edit)),
                "details": json.dumps({"background": verdict.background, "detections": detections}),
            }
        )
    return rows


def edit_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of the rows of edits.

    Returns:
        `num_images`; `success`, `consistency`, `both` (success and consistency in one picture) and `mae`, each with
        the plain mean of the kinds present as `mean` and its normal `interval`; and `kinds`, with the same four for
        each kind (Wilson's score intervals for shares, Student's for the error) and its `num_images`. Intervals are at
        95 %.

    Raises:
        ValueError: If there are no rows.
    """
    shares = {
        "success": [bool(row["correct"]) for row in rows],
        "consistency": [bool(row["consistent"]) for row in rows],
        "both": [bool(row["correct"] and row["consistent"]) for row in rows],
    }
    tags = [row["tag"] for row in rows]
    scores = {
        name: summary([{"tag": tag, "correct": value} for tag, value in zip(tags, values, strict=True)])
        for name, values in shares.items()
    }
    errors = {kind: _mean([row["mae"] for row in rows if row["tag"] == kind]) for kind in _in_order(tags)}
    variance = sum(one.pop("variance") for one in errors.values())
    mean = sum(one["mean"] for one in errors.values()) / len(errors)
    half = float(ndtri(0.975)) * math.sqrt(variance) / len(errors)
    kinds: dict[str, dict[str, Any]] = {}
    for kind, error in errors.items():
        own = {name: score["tags"][kind] for name, score in scores.items()}
        of_kind = {name: {"mean": one["mean"], "interval": one["interval"]} for name, one in own.items()}
        kinds[kind] = {"num_images": tags.count(kind), **of_kind, "mae": error}
    return {
        "num_images": len(rows),
        **{name: score["overall"] for name, score in scores.items()},
        "mae": {"mean": mean, "interval": [max(0.0, mean - half), min(1.0, mean + half)]},
        "kinds": kinds,
    }


def _in_order(kinds: Sequence[str]) -> list[str]:
    return sorted(set(kinds), key=lambda kind: (ALL_KINDS.index(kind) if kind in ALL_KINDS else len(ALL_KINDS), kind))


def _mean(errors: Sequence[float]) -> dict[str, Any]:
    """Mean of errors in [0, 1], its interval (all of [0, 1] for a single one), and the mean's variance."""
    mean, count = float(np.mean(errors)), len(errors)
    if count == 1:
        return {"mean": mean, "interval": [0.0, 1.0], "variance": math.inf}
    variance = float(np.var(errors, ddof=1)) / count
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance)
    return {"mean": mean, "interval": [max(0.0, mean - half), min(1.0, mean + half)], "variance": variance}


def edit_panels(
    images: Sequence[NDArray[np.uint8]], edits: Sequence[ShapesEdit], verdicts: Sequence[EditVerdict], world: World
) -> tuple[NDArray[np.uint8], list[str], int]:
    """Pictures to lay out in rows, one an edit: references, result, difference map, what was expected.

    The difference map shows the absolute difference between result and source, black for none, and in blue the region
    that may differ.

    Args:
        images: Edited pictures, uint8, (canvas, canvas, 3) each.
        edits: What was asked for.
        verdicts: How it turned out.
        world: Where the edits come from.

    Returns:
        Panels, uint8, (N, canvas, canvas, 3); a label for each; and the number of panels a row.
    """
    most = max((len(edit.references) for edit in edits), default=1)
    panels: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for image, edit, verdict in zip(images, edits, verdicts, strict=True):
        source = render(edit.source, world)
        for number in range(most - len(edit.references)):
            panels.append(np.full_like(source, 200))
            labels.append("no other image" if number == 0 else "")
        for number, scene in enumerate(edit.references[:-1], start=1):
            panels.append(render(scene, world))
            labels.append(f"image {number}")
        told = "success" if verdict.success else f"failed: {verdict.reason}"
        kept = "consistent" if verdict.consistent else f"changed: {verdict.drift}"
        panels += [
            source,
            np.asarray(image),
            _difference(image, source, edit, verdict, world),
            render(edit.target, world),
        ]
        labels += [
            f"source: {edit.instruction}",
            f"result: {told}; {kept}",
            f"difference, {verdict.error:.4f} outside the blue",
            f"expected: {edit.target.caption}",
        ]
    columns = most + 3
    side = world.canvas
    return (np.stack(panels) if panels else np.zeros((0, side, side, 3), dtype=np.uint8)), labels, columns


def _difference(
    image: NDArray[np.uint8], source: NDArray[np.uint8], edit: ShapesEdit, verdict: EditVerdict, world: World
) -> NDArray[np.uint8]:
    difference = np.abs(image.astype(np.float32) - source).mean(axis=-1)
    shown = np.repeat(difference[..., None], 3, axis=-1)
    shown[edited_region(edit, world, verdict.detections), 2] += 90
    return shown.clip(0, 255).astype(np.uint8)
