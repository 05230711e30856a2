"""Drawing a scene: an anti-aliased picture, and a map of which object owns which pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.geometry import EXTENTS, FloatArray, signed_distance
from blip3o.shapes.scenes import Scene, ShapeObject
from blip3o.shapes.world import BACKGROUNDS, COLORS, World

_PALETTE = {name: np.array(rgb, dtype=np.float32) for name, rgb in {**BACKGROUNDS, **COLORS}.items()}


def render(scene: Scene, world: World) -> NDArray[np.uint8]:
    """Draws a scene, later objects over earlier ones.

    A pixel's coverage by an object is `clip(0.5 - d, 0, 1)`, where d is the signed distance (pixels)
    of its centre from the outline: exact along straight, axis-aligned edges.

    Args:
        scene: What to draw.
        world: Gives the canvas.

    Returns:
        RGB picture, uint8, (canvas, canvas, 3).
    """
    image = np.empty((world.canvas, world.canvas, 3), dtype=np.float32)
    image[:] = _PALETTE[scene.background]
    for obj in scene.objects:
        rows, columns, distance = _local_distance(obj, world.canvas)
        coverage = np.clip(0.5 - distance, 0, 1)[..., None]
        window = image[rows, columns]
        window += coverage * (_PALETTE[obj.color] - window)
    return np.rint(image).astype(np.uint8)


def render_object_map(scene: Scene, world: World) -> NDArray[np.int8]:
    """Maps every pixel to the object that covers its centre.

    Returns:
        Index into `scene.objects` (the last, where several cover it) or -1 for the background, int8,
        (canvas, canvas).
    """
    owner = np.full((world.canvas, world.canvas), -1, dtype=np.int8)
    for index, obj in enumerate(scene.objects):
        rows, columns, distance = _local_distance(obj, world.canvas)
        owner[rows, columns][distance <= 0] = index
    return owner


def _local_distance(obj: ShapeObject, canvas: int) -> tuple[slice, slice, FloatArray]:
    """Signed distances of the pixel centres in the part of the canvas that an object can touch."""
    width, height = EXTENTS[obj.shape]
    columns = _touched(obj.x, width * obj.h, canvas)
    rows = _touched(obj.y, height * obj.h, canvas)
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + np.float32(0.5 - obj.x)
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - obj.y)
    return rows, columns, signed_distance(obj.shape, x, y, obj.h)


def _touched(center: float, half: float, canvas: int) -> slice:
    start = max(0, math.floor(center - half - 1))
    return slice(start, max(start, min(canvas, math.ceil(center + half + 1))))
