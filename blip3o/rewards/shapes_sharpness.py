"""A reward of the shapes world for sharp edges, whatever is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores
from blip3o.shapes import BACKGROUNDS, COLORS

_PALETTE = np.array(list((COLORS | BACKGROUNDS).values()), dtype=np.float32)


class ShapesSharpnessReward(Reward):
    """One less the blur of a picture: how far its pixels are from the colours of scenes, for each pixel of edge.

    Every pixel counts as the nearest of the colours that scenes are drawn with. The summed distances from them, over
    the number of neighbouring pixels that count as different ones, is 0.08 in exact drawings, for their anti-aliasing.
    Captions are not read, so join it to a reward that reads them, such as `ShapesReward`.

    Args:
        name: under which it is logged.
    """

    def __init__(self, name: str = "shapes_sharpness") -> None:
        self.name = name

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1]. A distance is the mean absolute difference of three channels in [0, 1]."""
        scores: Scores = np.array([1 - min(1.0, _blur(image)) for image in images], dtype=np.float64)
        return scores


def _blur(image: Images) -> float:
    """Of an image (H, W, 3)."""
    distances = np.abs(image[..., None, :].astype(np.float32) - _PALETTE).mean(axis=-1) / 255
    nearest = distances.argmin(axis=-1)
    edge = (nearest[1:] != nearest[:-1]).sum() + (nearest[:, 1:] != nearest[:, :-1]).sum()
    return float(distances.min(axis=-1).sum() / max(edge, 1))
