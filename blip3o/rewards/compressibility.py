"""A reward for pictures that compress well: something to optimise that needs no judge."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from blip3o.rewards.base import Images, Metadata, Reward, Scores


class CompressibilityReward(Reward):
    """The share of its bytes that a picture saves as JPEG, the compressibility of DDPO (arXiv 2305.13301).

    Captions are not read, and a blank canvas saves most, so join it to a reward that reads them.

    Args:
        quality: of the JPEG, 1 to 95.
        name: under which it is logged.

    Raises:
        ValueError: if the quality is out of range.
    """

    def __init__(self, quality: int = 95, name: str = "compressibility") -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality ({quality}) must lie in 1 to 95, as Pillow advises; DDPO takes 95.")
        self.quality = quality
        self.name = name

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1]: 1 - bytes / (H W 3), and 0 where nothing is saved. Prompts are not read."""
        sizes = np.array([self._bytes(image) for image in images], dtype=np.float64)
        scores: Scores = np.maximum(1 - sizes / np.prod(images.shape[1:]), 0.0)
        return scores

    def _bytes(self, image: Images) -> int:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality)
        return len(file.getvalue())
