"""ShapesSharpnessReward: exact drawings are sharp, blur costs, and neither size nor number of objects pays."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from blip3o.rewards import ShapesSharpnessReward
from blip3o.shapes import BACKGROUNDS, SHAPES, TAGS, render, sample_scene


def scenes() -> np.ndarray:
    return np.stack([render(sample_scene(SHAPES, 0, i, tag=tag), SHAPES) for tag in TAGS for i in range(4)])


def sharpness(images: np.ndarray) -> np.ndarray:
    return ShapesSharpnessReward()(images, ["anything"] * len(images), [{}] * len(images))


def test_a_picture_by_hand() -> None:
    image = np.empty((4, 4, 3), dtype=np.uint8)
    image[:] = BACKGROUNDS["white"]
    assert sharpness(image[None]).tolist() == [1.0]  # no edge, no other colour
    image[:, :2] = BACKGROUNDS["black"]
    assert sharpness(image[None]).tolist() == [1.0]  # four neighbours differ, none is off its colour
    image[0, 0] += 51  # still nearest to black, 0.2 from it in three channels
    np.testing.assert_allclose(sharpness(image[None]), [1 - 0.2 / 4], rtol=1e-6)


def test_blur_costs_and_the_more_the_blurrier() -> None:
    exact = scenes()
    means = [
        sharpness(np.stack([ndimage.gaussian_filter(image, (sigma, sigma, 0)) for image in exact])).mean()
        for sigma in (0.0, 0.5, 0.8, 1.2)
    ]
    assert 0.91 < means[0] < 0.93
    assert means == sorted(means, reverse=True)
    assert means[-1] > 0


def test_exact_scenes_earn_alike_however_many_objects_they_hold() -> None:
    by_tag = sharpness(scenes()).reshape(len(TAGS), 4).mean(axis=1)
    assert np.ptp(by_tag) < 0.06


def test_noise_earns_little_and_the_range_is_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    grey = np.full((1, 8, 8, 3), 128, dtype=np.uint8)
    for images in (noise, grey):
        scores = sharpness(images)
        assert (scores >= 0).all() and (scores < 0.93).all()
    assert sharpness(grey).tolist() == [0.0]
    assert ShapesSharpnessReward().name == "shapes_sharpness"
