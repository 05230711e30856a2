"""The exact verifier: reads a picture from its pixels alone and checks it against a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blip3o.shapes.captions import CaptionSpec, parse_caption
from blip3o.shapes.matching import MAX_MISMATCH, match_shape
from blip3o.shapes.scenes import holds
from blip3o.shapes.segmentation import Region, num_stray_allowed, segment
from blip3o.shapes.world import World

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]

_BATCH = 32  # pictures segmented together; bounds memory


@dataclass(frozen=True)
class Detection:
    """An object found in a picture.

    Attributes:
        shape: One of the world's shapes.
        color: One of the world's colours.
        x: Centre of its bounding box, pixels from the left edge.
        y: Centre of its bounding box, pixels from the top edge.
        h: Half-extent, pixels.
        score: How well the shape fits: one less the mismatch, up to 1.
    """

    shape: str
    color: str
    x: float
    y: float
    h: float
    score: float


@dataclass(frozen=True)
class Observation:
    """Everything found in a picture.

    Attributes:
        background: A name from `BACKGROUNDS`, or None where the border shows neither.
        detections: The objects, from top to bottom.
        defect: What makes the picture no scene of the world (in words), or None.
    """

    background: str | None
    detections: tuple[Detection, ...]
    defect: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what its caption says; `reason` tells why not, and is empty if it does."""

    correct: bool
    reason: str
    detections: tuple[Detection, ...]
    background: str | None


def detect(images: Images, world: World, *, max_mismatch: float = MAX_MISMATCH) -> list[Observation]:
    """Reads pictures from their pixels alone.

    The background comes from the border, objects are connected regions of one colour, and each must
    fit one shape's template. A region that fits none, or more stray pixels than canvas^2 / 400, are
    a defect.

    Args:
        images: Batch of RGB pictures, uint8, (B, canvas, canvas, 3), or a sequence of single ones.
        world: Where the pictures should come from.
        max_mismatch: Largest share of its area by which an object may differ from its shape.

    Returns:
        One observation a picture.

    Raises:
        ValueError: If the pictures have another type or size.
    """
    batch = _checked(images, world)
    observations: list[Observation] = []
    for start in range(0, len(batch), _BATCH):
        found = segment(batch[start : start + _BATCH], world)
        for background, regions, num_stray in zip(found.backgrounds, found.regions, found.num_stray, strict=True):
            observations.append(_observe(background, regions, num_stray, world, max_mismatch))
    return observations


def _observe(
    background: str | None, regions: list[Region], num_stray: int, world: World, max_mismatch: float
) -> Observation:
    if background is None:
        return Observation(None, (), "the background is neither white nor black")
    detections: list[Detection] = []
    defect = None
    for region in regions:
        match = match_shape(region, world, max_mismatch)
        if match is not None:
            score = 1 - match.mismatch
            detections.append(Detection(match.shape, region.color, match.x, match.y, match.h, score))
        elif defect is None:
            defect = f"a region of {region.area} {region.color} pixels matches no shape"
    if defect is None and num_stray > num_stray_allowed(world):
        defect = f"{num_stray} stray pixels belong to no object"
    return Observation(background, tuple(sorted(detections, key=lambda found: found.y)), defect)


def verify(
    images: Images, captions: Sequence[str], world: World, *, max_mismatch: float = MAX_MISMATCH
) -> list[Verdict]:
    """Checks pictures against captions: objects, counts, colours and relation exactly, nothing extra.

    Args:
        images: Batch of RGB pictures, uint8, (B, canvas, canvas, 3), or a sequence of single ones.
        captions: One caption a picture.
        world: Where both come from.
        max_mismatch: As for `detect`.

    Raises:
        ValueError: If pictures or captions cannot be read, or their numbers differ.
    """
    batch = _checked(images, world)
    if len(batch) != len(captions):
        raise ValueError(f"captions ({len(captions)}) must be as many as images ({len(batch)}); pair them.")
    specs = [parse_caption(caption, world) for caption in captions]
    observations = detect(batch, world, max_mismatch=max_mismatch)
    return [judge(seen, spec) for seen, spec in zip(observations, specs, strict=True)]


def judge(observation: Observation, spec: CaptionSpec) -> Verdict:
    """Compares what was found in a picture with what a caption asks for."""
    reason = observation.defect or "; ".join(_differences(observation.detections, spec))
    return Verdict(not reason, reason, observation.detections, observation.background)


def _differences(detections: tuple[Detection, ...], spec: CaptionSpec) -> list[str]:
    reasons: list[str] = []
    for kind in spec.objects:
        found = [item for item in detections if item.shape == kind.shape]
        if len(found) != kind.count:
            reasons.append(f"expected {kind.shape}={kind.count}, found {len(found)}")
        wrong = [item.color for item in found if kind.color not in (None, item.color)]
        if wrong:
            reasons.append(f"expected {kind.color} {kind.shape}, found {' and '.join(sorted(set(wrong)))}")
    asked = {kind.shape for kind in spec.objects}
    extra = [f"{item.color} {item.shape}" for item in detections if item.shape not in asked]
    if extra:
        reasons.append(f"expected nothing else, found {' and '.join(extra)}")
    if spec.relation is not None and not reasons:
        first, second = (next(d for d in detections if d.shape == kind.shape) for kind in spec.objects)
        dx, dy = second.x - first.x, second.y - first.y
        if not holds(spec.relation, dx, dy):
            seen = f"offset by ({-dx:.1f}, {-dy:.1f}) pixels"
            reasons.append(f"expected {first.shape} {spec.relation} {second.shape}, found it {seen}")
    return reasons


def _checked(images: Images, world: World) -> NDArray[np.uint8]:
    if not isinstance(images, np.ndarray):
        images = [np.asarray(image) for image in images]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise ValueError(f"images have several shapes {sorted(shapes)}; resize them to one.")
        if not images:
            return np.zeros((0, world.canvas, world.canvas, 3), dtype=np.uint8)
        images = np.stack(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images ({images.dtype}) must be uint8 with values 0-255; convert them.")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images {images.shape} must have shape (B, H, W, 3); add or move the axes.")
    if images.shape[1:3] != (world.canvas, world.canvas):
        raise ValueError(
            f"images {images.shape} must match the world's canvas, {world.canvas} pixels a side; resize them."
        )
    return images
