"""Worlds of shapes and worlds of words by one set of names, for whoever serves either."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.captions import Split, evaluation_captions, metadata
from blip3o.shapes.geneval import result_rows
from blip3o.shapes.render import render
from blip3o.shapes.scenes import Scene, sample_scene
from blip3o.shapes.text import (
    TEXT_WORLDS,
    TextScene,
    TextWorld,
    render_text,
    sample_text_scene,
    text_evaluation_captions,
    text_metadata,
)
from blip3o.shapes.text_reader import verify_text
from blip3o.shapes.verifier import verify
from blip3o.shapes.world import WORLDS, World, get_world

AnyWorld = World | TextWorld


def get_any_world(name: str | AnyWorld) -> AnyWorld:
    """Returns the preset world of shapes or words called `name`, or the world itself.

    Raises:
        ValueError: If there is no such preset.
    """
    if isinstance(name, TextWorld):
        return name
    if isinstance(name, str) and name not in WORLDS:
        if name not in TEXT_WORLDS:
            raise ValueError(f"name ({name!r}) is not a world; choose one of {sorted({**WORLDS, **TEXT_WORLDS})}.")
        return TEXT_WORLDS[name]
    return get_world(name)


def sample_any_scene(
    world: AnyWorld,
    seed: int,
    index: int,
    *,
    split: Split = "train",
    tag_weights: Mapping[str, float] | None = None,
) -> Scene | TextScene:
    """Scene number `index` of the stream `seed`, a pure function of its arguments; raises as its world's own."""
    if isinstance(world, TextWorld):
        return sample_text_scene(world, seed, index, split=split, tag_weights=tag_weights)
    return sample_scene(world, seed, index, split=split, tag_weights=tag_weights)


def render_any(scene: Scene | TextScene, world: AnyWorld) -> NDArray[np.uint8]:
    """A scene's picture, uint8, (canvas, canvas, 3)."""
    if isinstance(world, TextWorld):
        assert isinstance(scene, TextScene), "a scene is drawn in its own world"
        return render_text(scene, world)
    assert isinstance(scene, Scene), "a scene is drawn in its own world"
    return render(scene, world)


def any_evaluation_captions(world: AnyWorld, num_captions: int, seed: int) -> list[str]:
    """Held-out captions, a pure function of its arguments; raises as its world's own."""
    if isinstance(world, TextWorld):
        return text_evaluation_captions(world, num_captions, seed)
    return evaluation_captions(world, num_captions, seed)


def any_metadata(caption: str, world: AnyWorld) -> dict[str, Any]:
    """What a caption asks for as plain values; raises as its world's own."""
    return text_metadata(caption, world) if isinstance(world, TextWorld) else metadata(caption, world)


def any_result_rows(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    filenames: Sequence[str],
    world: AnyWorld,
) -> list[dict[str, Any]]:
    """Pictures judged against their captions, as rows of GenEval's result file; raises as its world's own.

    Args:
        images: uint8, (B, canvas, canvas, 3).
        captions: The prompt of each image.
        filenames: The file of each image.
        world: Where the captions come from.

    Returns:
        Rows as `result_rows` gives. The details of a world of words are what was read.
    """
    if not isinstance(world, TextWorld):
        return result_rows(verify(images, captions, world), captions, filenames, world)
    rows = []
    for verdict, caption, filename in zip(verify_text(images, captions, world), captions, filenames, strict=True):
        line, seen = text_metadata(caption, world), asdict(verdict.reading)
        seen |= {name: None for name in ("x", "y", "height") if math.isnan(seen[name])}
        rows.append(
            {
                "filename": filename,
                "tag": line["tag"],
                "prompt": caption,
                "correct": verdict.correct,
                "reason": verdict.reason,
                "metadata": json.dumps(line),
                "details": json.dumps(seen),
            }
        )
    return rows
