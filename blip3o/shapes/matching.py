"""Which shape a region is: comparison with templates of the region's own area, drawn around its centroid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.geometry import AREAS, CENTROIDS, FloatArray, signed_distance
from blip3o.shapes.segmentation import Region
from blip3o.shapes.world import World

MAX_MISMATCH = 0.12
"""Largest share of a shape's area by which a region may differ from its template."""

MAX_AMBIGUITY = 0.6
"""Largest ratio of the best template's mismatch to the second best's."""

SIZE_SLACK = 0.2
"""How far, as a share, a half-extent may lie outside the world's range."""

MIN_COVERAGE = 0.7
"""Smallest coverage inside a region; below it the colour is too pale."""

_SMOOTHING = 1.0  # standard deviation (pixels) of the blur under which pictures are compared
_SOFTNESS = (0.0, 0.6, 1.0)  # standard deviations (pixels) of the blur a picture may bring itself
_PADDING = 3


@dataclass(frozen=True)
class Match:
    """The template that fits a region: shape, bounding box's centre and half-extent (pixels), mismatch."""

    shape: str
    x: float
    y: float
    h: float
    mismatch: float


def match_shape(region: Region, world: World, max_mismatch: float = MAX_MISMATCH) -> Match | None:
    """Finds the shape that a region shows, or None where no template fits it well and alone.

    Every template gets the region's area and centre of mass. Region and template are both blurred a
    little, which hides pixel noise; the mismatch is their summed absolute difference over the area.
    An evenly pale region is compared once more at full colour.

    Args:
        region: Part of a picture.
        world: Gives the shapes, and the sizes that are possible.
        max_mismatch: Largest mismatch accepted, as a share of the area.
    """
    inside = region.coverage[region.coverage >= 0.5]
    strength = float(np.median(inside))
    if strength < MIN_COVERAGE:
        return None
    match = _best_match(region, region.coverage, world, max_mismatch)
    if match is None and strength < 0.97:
        match = _best_match(region, region.coverage / np.float32(strength), world, max_mismatch)
    return match


def _best_match(region: Region, coverage: NDArray[np.float32], world: World, max_mismatch: float) -> Match | None:
    low, high = _size_range(world)
    if max(coverage.shape) > 2 * high + 6:
        return None
    area = float(coverage.sum())
    sizes = {shape: math.sqrt(max(area, 0) / AREAS[shape]) for shape in world.shapes}
    if not any(low <= h <= high for h in sizes.values()):
        return None
    cover = np.pad(coverage, _PADDING)
    x = np.arange(cover.shape[1], dtype=np.float32) + np.float32(0.5)
    y = np.arange(cover.shape[0], dtype=np.float32) + np.float32(0.5)
    center_x, center_y = float(cover.sum(axis=0) @ x) / area, float(cover.sum(axis=1) @ y) / area
    dx, dy = (x - np.float32(center_x))[None, :], (y - np.float32(center_y))[:, None]
    templates = np.stack(
        [
            np.clip(0.5 - signed_distance(shape, dx, dy + np.float32(CENTROIDS[shape] * h), h), 0, 1)
            for shape, h in sizes.items()
        ]
    )
    seen = _blurred(cover, _SMOOTHING)
    mismatches = np.full(len(sizes), np.inf)
    for softness in _SOFTNESS:
        difference = _blurred(templates, math.hypot(_SMOOTHING, softness)) - seen
        mismatches = np.minimum(mismatches, np.abs(difference).sum(axis=(1, 2)) / area)
    order = np.argsort(mismatches)
    best = float(mismatches[order[0]])
    second = float(mismatches[order[1]]) if len(order) > 1 else math.inf
    shape = world.shapes[int(order[0])]
    h = sizes[shape]
    if best > max_mismatch or best > MAX_AMBIGUITY * second or not low <= h <= high:
        return None
    left, top = region.x - _PADDING, region.y - _PADDING
    return Match(shape, left + center_x, top + center_y - CENTROIDS[shape] * h, h, best)


def _size_range(world: World) -> tuple[float, float]:
    ranges = [world.half_extents[count] for count in world.object_counts]
    return (1 - SIZE_SLACK) * min(r[0] for r in ranges), (1 + SIZE_SLACK) * max(r[1] for r in ranges)


def _blurred(images: FloatArray, sigma: float) -> FloatArray:
    """Gaussian blur of the last two axes; outside lies zero."""
    return _blur_matrix(images.shape[-2], sigma) @ images @ _blur_matrix(images.shape[-1], sigma)


@lru_cache(maxsize=512)
def _blur_matrix(size: int, sigma: float) -> FloatArray:
    steps = np.arange(size, dtype=np.float64)
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / sigma) ** 2)
    return (weights / (sigma * math.sqrt(2 * math.pi))).astype(np.float32)
