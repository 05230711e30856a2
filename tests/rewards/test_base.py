"""WeightedSum: its range, its parts apart, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o.rewards import Reward, WeightedSum
from blip3o.rewards.base import Images, Metadata, Scores

IMAGES = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 255)])
PROMPTS, METADATA = ["dark", "light"], [{}, {}]


class Brightness(Reward):
    name = "brightness"

    def __call__(self, images: Images, prompts: object, metadata: Metadata) -> Scores:
        return images.mean((1, 2, 3)) / 255


class Flat(Reward):
    name = "flat"
    range = (-1.0, 3.0)

    def __call__(self, images: Images, prompts: object, metadata: Metadata) -> Scores:
        return np.full(len(images), 2.0)


def test_the_sum_weighs_rewards_and_gives_each_apart() -> None:
    both = WeightedSum([Brightness(), Flat()], [0.5, -1.0])
    scores = both.scores(IMAGES, PROMPTS, METADATA)
    assert {name: one.tolist() for name, one in scores.items()} == {"brightness": [0.0, 1.0], "flat": [2.0, 2.0]}
    assert both(IMAGES, PROMPTS, METADATA).tolist() == both.total(scores).tolist() == [-2.0, -1.5]
    assert both.range == (-3.0, 1.5)


def test_an_open_range_without_weight_leaves_the_range_of_the_sum_closed() -> None:
    class Open(Flat):
        name = "open"
        range = (-np.inf, np.inf)

    assert WeightedSum([Flat(), Open()], [1.0, 0.0]).range == (-1.0, 3.0)
    assert WeightedSum([Flat(), Open()], [1.0, -1.0]).range == (-np.inf, np.inf)


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards \(\[\]\)"):
        WeightedSum([])
    with pytest.raises(ValueError, match="a name of its own"):
        WeightedSum([Flat(), Flat()])
    with pytest.raises(ValueError, match="one finite number for each"):
        WeightedSum([Flat()], [1.0, 2.0])
    with pytest.raises(ValueError, match="one finite number for each"):
        WeightedSum([Flat()], [float("nan")])


def test_a_reward_that_gives_too_few_scores_is_named() -> None:
    class Short(Flat):
        def __call__(self, images: Images, prompts: object, metadata: Metadata) -> Scores:
            return np.zeros(1)

    with pytest.raises(ValueError, match=r"reward 'flat' gave scores \(1,\) for 2 images"):
        WeightedSum([Short()])(IMAGES, PROMPTS, METADATA)
