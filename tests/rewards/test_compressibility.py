"""CompressibilityReward: the share of bytes saved, from a blank canvas down to noise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from blip3o.rewards import CompressibilityReward

BLANK = np.full((64, 64, 3), 200, dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def score(image: np.ndarray, quality: int = 95) -> float:
    return float(CompressibilityReward(quality)(image[None], ["anything"], [{}])[0])


def test_it_is_the_share_of_bytes_that_the_file_saves() -> None:
    halves = BLANK.copy()
    halves[:, 32:] = 10
    for quality in (95, 50):
        file = io.BytesIO()
        Image.fromarray(halves).save(file, "JPEG", quality=quality)
        assert score(halves, quality) == pytest.approx(1 - file.tell() / halves.size)


def test_blank_beats_a_drawing_and_that_the_same_with_noise() -> None:
    drawing = BLANK.copy()
    drawing[20:40, 10:50] = (220, 30, 30)
    rough = np.clip(drawing.astype(int) + np.random.default_rng(1).integers(-8, 9, drawing.shape), 0, 255)
    scores = [score(image) for image in (BLANK, drawing, rough.astype(np.uint8), NOISE)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert scores[-1] >= 0 and scores[0] < 1


def test_what_grows_earns_nothing() -> None:
    """The header of a file alone is longer than a picture of four pixels."""
    assert score(NOISE[:2, :2]) == 0.0


@pytest.mark.parametrize("quality", [0, 96])
def test_other_qualities_are_refused(quality: int) -> None:
    with pytest.raises(ValueError, match=rf"quality \({quality}\)"):
        CompressibilityReward(quality)
    assert CompressibilityReward().name == "compressibility"
