"""Exact outlines of the shapes: signed distances, extents and areas as multiples of the half-extent h.

Coordinates are image coordinates (x to the right, y downwards) relative to the centre of the shape's
bounding box, in pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.world import SHAPE_NAMES

FloatArray = NDArray[np.floating[Any]]

_SQUARE = 0.93  # half-side
_TRIANGLE = 0.95  # half-height and half-base
_CROSS = 0.36  # half-width of an arm
_STAR_OUTER = 1.05
_STAR_INNER = 0.45 * _STAR_OUTER
_COS36, _SIN36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
_STAR_DROP = _STAR_OUTER * (1 - _COS36) / 2  # circumcentre below the bounding box's centre
_EDGE = math.hypot(_STAR_INNER * _SIN36, _STAR_OUTER - _STAR_INNER * _COS36)
_STAR_NORMAL = ((_STAR_OUTER - _STAR_INNER * _COS36) / _EDGE, _STAR_INNER * _SIN36 / _EDGE)

EXTENTS: dict[str, tuple[float, float]] = {
    "circle": (1.0, 1.0),
    "square": (_SQUARE, _SQUARE),
    "triangle": (_TRIANGLE, _TRIANGLE),
    "star": (_STAR_OUTER * math.sin(2 * math.pi / 5), _STAR_OUTER * (1 + _COS36) / 2),
    "cross": (1.0, 1.0),
}
"""Half-width and half-height of each shape's bounding box, in units of h."""

AREAS: dict[str, float] = {
    "circle": math.pi,
    "square": 4 * _SQUARE**2,
    "triangle": 2 * _TRIANGLE**2,
    "star": 5 * _STAR_OUTER * _STAR_INNER * _SIN36,
    "cross": 8 * _CROSS - 4 * _CROSS**2,
}
"""Area of each shape, in units of h squared."""

CENTROIDS: dict[str, float] = {
    "circle": 0.0,
    "square": 0.0,
    "triangle": _TRIANGLE / 3,
    "star": _STAR_DROP,
    "cross": 0.0,
}
"""How far each shape's centre of mass lies below its bounding box's centre, in units of h."""


def signed_distance(shape: str, x: FloatArray, y: FloatArray, h: float) -> FloatArray:
    """Distance to a shape's outline, negative inside.

    Exact beside edges; beyond a corner it is the distance to the nearest edge's line, which keeps
    corners sharp. `clip(0.5 - signed_distance, 0, 1)` is the coverage of a one-pixel square.

    Args:
        shape: One of `SHAPE_NAMES`.
        x: Offsets to the right of the bounding box's centre, pixels, broadcastable with `y`.
        y: Offsets below that centre, pixels.
        h: Half-extent, pixels.

    Returns:
        Distances in pixels, of the broadcast shape.

    Raises:
        ValueError: If `shape` is unknown.
    """
    if shape == "circle":
        return np.hypot(x, y) - h
    across = np.abs(x)
    if shape == "square":
        return np.maximum(across, np.abs(y)) - _SQUARE * h
    if shape == "triangle":
        slanted = (2 * across - (y + _TRIANGLE * h)) / math.sqrt(5)
        return np.maximum(slanted, y - _TRIANGLE * h)
    if shape == "cross":
        down = np.abs(y)
        return np.maximum(np.minimum(across, down) - _CROSS * h, np.maximum(across, down) - h)
    if shape == "star":
        return _star_distance(across, y, h)
    raise ValueError(f"shape ({shape!r}) is unknown; choose one of {SHAPE_NAMES}.")


def _star_distance(across: FloatArray, y: FloatArray, h: float) -> FloatArray:
    # Mirror the plane into the half-sector beside the upper tip, which a single edge bounds.
    u, v = across, _STAR_DROP * h - y
    fold = 2 * np.maximum(_COS36 * u - _SIN36 * v, 0)
    u, v = u - _COS36 * fold, v + _SIN36 * fold
    fold = 2 * np.maximum(-_COS36 * u - _SIN36 * v, 0)
    u, v = np.abs(u + _COS36 * fold), v + _SIN36 * fold
    return _STAR_NORMAL[0] * u + _STAR_NORMAL[1] * (v - _STAR_OUTER * h)
