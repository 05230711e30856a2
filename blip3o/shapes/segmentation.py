"""From pixels to regions: the background, each pixel's colour, and connected regions of one colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from blip3o.shapes.world import BACKGROUNDS, COLORS, World

COLOR_TOLERANCE = 60.0
"""RGB distance up to which a pixel still counts as a mixture of background and one colour."""

_IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(bool)


@dataclass(frozen=True)
class Region:
    """A connected region of one colour.

    Attributes:
        image: Index of its picture in the batch.
        color: Name of its colour.
        area: Number of pixels that are at least half covered.
        x: Left edge of the window that holds the region and a rim of two pixels.
        y: Top edge of that window.
        coverage: How far each pixel of the window turned from the background (0) to the colour (1),
            zero outside region and rim, float32, (height, width).
    """

    image: int
    color: str
    area: int
    x: int
    y: int
    coverage: NDArray[np.float32]


@dataclass(frozen=True)
class Segmentation:
    """What a batch of pictures splits into.

    Attributes:
        backgrounds: For each picture a name from `BACKGROUNDS`, or None where neither fits.
        regions: For each picture its regions, without specks.
        num_stray: For each picture the number of pixels that no region explains: specks, colours
            outside the palette, and faint marks.
    """

    backgrounds: list[str | None]
    regions: list[list[Region]]
    num_stray: list[int]


def num_stray_allowed(world: World) -> int:
    """Stray pixels that a picture may hold, and the area up to which a region is a speck: canvas^2 / 400."""
    return world.canvas**2 // 400


def segment(images: NDArray[np.uint8], world: World) -> Segmentation:
    """Splits pictures into background and regions.

    Between background and object lies a rim of mixtures, so a pixel's colour is that of the nearest
    segment from the background's RGB to a prototype, and its coverage the position on that segment.
    Pixels at least half covered form regions with their eight neighbours of the same colour.

    Args:
        images: Batch of pictures, uint8, (B, canvas, canvas, 3).
        world: Gives the palette.
    """
    backgrounds = find_backgrounds(images)
    base = np.array([BACKGROUNDS[name or "white"] for name in backgrounds], dtype=np.float32)
    offset = images - base[:, None, None, :]
    coverage, color, strange = _unmix(offset, base, world)
    size = coverage.shape[:3]
    labels = np.zeros(size, dtype=np.int32)
    colors: list[int] = [-1]  # of each label; 0 is the background
    for index in range(len(world.colors)):
        found, count = ndimage.label(color == index, structure=_IN_PLANE)
        if count:
            labels += np.where(found > 0, found + (len(colors) - 1), 0)
            colors.extend([index] * count)
    areas = np.bincount(labels.ravel(), minlength=len(colors))
    is_region = areas > num_stray_allowed(world)
    is_region[0] = False
    labels = np.where(is_region[labels], labels, 0)
    claimed = _grow(_grow(labels))
    marked = (color >= 0) | (np.einsum("bhwc,bhwc->bhw", offset, offset) > COLOR_TOLERANCE**2)
    stray = strange | (marked & (claimed == 0))
    regions: list[list[Region]] = [[] for _ in backgrounds]
    windows = ndimage.find_objects(claimed)
    for label in np.flatnonzero(is_region).tolist():
        plane, rows, columns = windows[label - 1]
        image = int(plane.start)
        cover = np.clip(coverage[image, rows, columns, colors[label]], -0.25, 1.25)
        cover = np.where(claimed[image, rows, columns] == label, cover, np.float32(0))
        name = world.colors[colors[label]]
        regions[image].append(Region(image, name, int(areas[label]), columns.start, rows.start, cover))
    return Segmentation(backgrounds, regions, stray.sum(axis=(1, 2)).tolist())


def find_backgrounds(images: NDArray[np.uint8]) -> list[str | None]:
    """The background that more than half of the outermost pixels show, within `COLOR_TOLERANCE`."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    names = list(BACKGROUNDS)
    prototypes = np.array([BACKGROUNDS[name] for name in names], dtype=np.float32)
    distance = np.linalg.norm(border[:, :, None, :] - prototypes, axis=-1)  # (B, border, 2)
    share = (distance < COLOR_TOLERANCE).mean(axis=1)
    return [names[int(row.argmax())] if row.max() > 0.5 else None for row in share]


def _unmix(
    offset: NDArray[np.float32], base: NDArray[np.float32], world: World
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_]]:
    """Splits offsets from the background into coverage by a colour and a remainder.

    Returns:
        Coverage by each colour, unclipped, (B, H, W, colours); the index of the colour that covers at
        least half of the pixel, or -1, (B, H, W); whether no mixture comes near the pixel, (B, H, W).
    """
    prototypes = np.array([COLORS[name] for name in world.colors], dtype=np.float32)
    direction = prototypes - base[:, None, :]  # (B, colours, 3)
    length = np.einsum("bkc,bkc->bk", direction, direction)[:, None, None, :]
    along = offset @ direction.transpose(0, 2, 1)[:, None]  # (B, H, W, colours)
    coverage = along / length
    clipped = np.clip(coverage, 0, 1)
    excess = clipped * (clipped * length - 2 * along)  # squared distance, less the offset's own square
    nearest = excess.argmin(axis=-1)[..., None]
    remainder = np.take_along_axis(excess, nearest, -1)[..., 0] + np.einsum("bhwc,bhwc->bhw", offset, offset)
    strange = remainder > COLOR_TOLERANCE**2
    covered = (np.take_along_axis(clipped, nearest, -1)[..., 0] >= 0.5) & ~strange
    return coverage, np.where(covered, nearest[..., 0], -1).astype(np.int8), strange


def _grow(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Lets every label take the free pixels among its eight neighbours."""
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    rows = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    around = np.maximum(np.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
    return np.where(labels > 0, labels, around)
