"""Prompt by prompt: known answers, and that prompts are never taken for seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from blip3o.ablation.prompt_statistics import bootstrap_interval, crossed, mcnemar, noise_share, prompt_weights
from blip3o.ablation.statistics import p_difference

TAGS = ["a"] * 6 + ["b"] * 12


def simulated(num: int, seeds: int, *, by_seed: float, by_prompt: float, noise: float = 1.0) -> np.ndarray:
    """Differences (num, seeds, P) without a true effect."""
    generator = np.random.default_rng(0)
    parts = [(by_seed, (num, seeds, 1)), (by_prompt, (num, 1, len(TAGS))), (noise, (num, seeds, len(TAGS)))]
    return np.sum(np.broadcast_arrays(*(std * generator.standard_normal(shape) for std, shape in parts)), axis=0)


def test_a_score_is_the_mean_of_the_tags_means() -> None:
    values = np.random.default_rng(0).uniform(size=len(TAGS))
    assert values @ prompt_weights(TAGS) == pytest.approx((values[:6].mean() + values[6:].mean()) / 2)


def test_mcnemar_counts_only_where_the_models_differ() -> None:
    left = np.array([1] * 9 + [0] * 2 + [1] * 50)
    right = np.array([0] * 9 + [1] * 2 + [1] * 50)
    assert mcnemar(left, right) == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert mcnemar(left, left) == 1


def test_the_bootstrap_covers_the_difference_of_the_models_at_hand() -> None:
    """Prompts drawn from a population: about 95 of 100 intervals hold the models' difference over all of it."""
    tags = ["a"] * 60 + ["b"] * 60
    d = np.random.default_rng(1).choice([-1, 0, 0, 0, 1, 1], size=(400, 1, 120))
    bounds = np.array([bootstrap_interval(one, tags, num_resamples=500, seed=k) for k, one in enumerate(d)])
    covered = (bounds[:, 0] <= 1 / 6) & (bounds[:, 1] >= 1 / 6)
    assert 0.91 <= covered.mean() <= 0.985
    assert bootstrap_interval(d[0], tags) == bootstrap_interval(d[0], tags)


@pytest.mark.parametrize(("by_seed", "by_prompt"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("seeds", [2, 4])
def test_crossed_verdicts_keep_the_level_whatever_varies(by_seed: float, by_prompt: float, seeds: int) -> None:
    d = simulated(20_000, seeds, by_seed=by_seed, by_prompt=by_prompt)
    assert (p_difference(crossed(d, TAGS)) <= 0.05).mean() <= 0.06
    if by_prompt and not by_seed:  # seeds alone can not see that the prompts are a sample, too
        by_seed_alone = stats.ttest_1samp(d @ prompt_weights(TAGS), 0, axis=-1).pvalue
        assert (by_seed_alone <= 0.05).mean() > 0.06


def test_the_share_of_noise_is_found() -> None:
    pure, none = simulated(1, 400, by_seed=0, by_prompt=0)[0], simulated(1, 400, by_seed=9, by_prompt=0)[0]
    assert noise_share(pure, TAGS) == pytest.approx(1, abs=0.15)
    assert noise_share(none, TAGS) < 0.01
    assert np.isnan(noise_share(np.zeros((3, len(TAGS))), TAGS))
