"""Results in GenEval's format: one row an image, and the scores with their 95 % intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from blip3o.shapes.captions import metadata
from blip3o.shapes.verifier import Verdict
from blip3o.shapes.world import TAGS, World

_Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def result_rows(
    verdicts: Sequence[Verdict], captions: Sequence[str], filenames: Sequence[str], world: World
) -> list[dict[str, Any]]:
    """Writes verdicts as rows of GenEval's result file, ready for JSON.

    Args:
        verdicts: One an image.
        captions: The prompt of each image.
        filenames: The file of each image.
        world: Where the captions come from.

    Returns:
        Rows with the keys filename, tag, prompt, correct, reason, metadata and details. As in
        GenEval's own file, the last two are JSON text (its summary groups rows by metadata); details
        holds the background and the list of detections.

    Raises:
        ValueError: If the three sequences differ in length, or a caption cannot be read.
    """
    lengths = (len(verdicts), len(captions), len(filenames))
    if len(set(lengths)) != 1:
        raise ValueError(
            f"verdicts, captions and filenames {lengths} must be of one length; pass one of each an image."
        )
    rows = []
    for verdict, caption, filename in zip(verdicts, captions, filenames, strict=True):
        line = metadata(caption, world)
        detections = [asdict(found) for found in verdict.detections]
        rows.append(
            {
                "filename": str(filename),
                "tag": line["tag"],
                "prompt": caption,
                "correct": bool(verdict.correct),
                "reason": verdict.reason,
                "metadata": json.dumps(line),
                "details": json.dumps({"background": verdict.background, "detections": detections}),
            }
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of a result file.

    Args:
        rows: Rows of `result_rows`, or lines of a GenEval result file.

    Returns:
        `overall`: `mean`, the plain mean of the tags present (each counts the same, whatever its number
        of images), with `interval`, the normal approximation around it; `num_images`; `tags`: for each
        tag `mean`, its Wilson score `interval`, `num_correct` and `num_images`. Intervals are at 95 %.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("rows (0) must hold at least one result; evaluate some images first.")
    outcomes: dict[str, list[bool]] = {}
    for row in rows:
        outcomes.setdefault(row["tag"], []).append(bool(row["correct"]))
    order = sorted(outcomes, key=lambda tag: (TAGS.index(tag) if tag in TAGS else len(TAGS), tag))
    tags: dict[str, dict[str, Any]] = {}
    variance = 0.0
    for tag in order:
        correct, total = sum(outcomes[tag]), len(outcomes[tag])
        tags[tag] = {
            "mean": correct / total,
            "interval": wilson_interval(correct, total),
            "num_correct": correct,
            "num_images": total,
        }
        shrunk = (correct + 1) / (total + 2)  # keeps a perfect or a failed tag from claiming no variance
        variance += shrunk * (1 - shrunk) / total
    mean = sum(tag["mean"] for tag in tags.values()) / len(tags)
    half = _Z * math.sqrt(variance) / len(tags)
    overall = {"mean": mean, "interval": [max(0.0, mean - half), min(1.0, mean + half)]}
    return {"overall": overall, "num_images": len(rows), "tags": tags}


def wilson_interval(num_correct: int, num_images: int) -> list[float]:
    """Wilson's score interval (1927) at 95 % for a share: `[low, high]` within [0, 1].

    Raises:
        ValueError: If the counts are no share.
    """
    if not 0 <= num_correct <= num_images or num_images < 1:
        raise ValueError(
            f"num_correct ({num_correct}) must lie between 0 and a positive num_images ({num_images}); count again."
        )
    share, square = num_correct / num_images, _Z**2
    scale = 1 + square / num_images
    center = (share + square / (2 * num_images)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / num_images + square / (4 * num_images**2))
    low = 0.0 if num_correct == 0 else center - half
    return [low, 1.0 if num_correct == num_images else center + half]
