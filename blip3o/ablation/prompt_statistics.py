"""What the prompts add: noise of measurement within a seed, and whether a difference would hold on other prompts.

Variants are scored on the same prompts with the same noise, so results pair prompt by prompt: D[s, p] is the variant's
result at prompt p less the reference's, for seed s. The score is the mean of the tags' means, so a prompt weighs
1 / (tags * prompts of its tag).

Prompts do not replace seeds: they say how well *these* trained models are measured, not how another training would
turn out. Therefore no verdict rests on them. What they are good for:

- `bootstrap_interval` and `mcnemar`: do these very models differ? All that a single seed can answer.
- `crossed`: the difference with seeds *and* prompts taken as random, for the claim that it would hold on other prompts.
- `noise_share`: the part of the scatter between seeds that is noise of measurement. Where it is large, more prompts
  help as much as more seeds; where it is small, only seeds do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from blip3o.ablation.statistics import Array, Estimate


def prompt_weights(tags: Sequence[str]) -> Array:
    """Weights (P,) of prompts in a score that is the mean of the tags' means; they add up to 1."""
    names, which, counts = np.unique(np.asarray(tags), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(names) * counts[which]), dtype=float)


def mcnemar(left: Any, right: Any) -> float:
    """Exact p-value that two models are right equally often, from their results (P,) bool on the same prompts."""
    left, right = np.asarray(left, dtype=bool), np.asarray(right, dtype=bool)
    only_left, only_right = int((left & ~right).sum()), int((right & ~left).sum())
    return float(binomtest(only_left, only_left + only_right).pvalue) if only_left + only_right else 1.0


def bootstrap_interval(
    differences: Any, tags: Sequence[str], *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the score's difference over prompts, for the trained models at hand.

    Prompts are drawn anew within each tag, the same ones for both variants and all seeds.

    Args:
        differences: (seeds, P) or (P,) results of the variant less those of the reference.
        tags: P tags.
        confidence: coverage.
        num_resamples: resampled sets of prompts.
        seed: of the resampling.
    """
    by_prompt = np.atleast_2d(np.asarray(differences, dtype=float)).mean(axis=0)
    names, which = np.unique(np.asarray(tags), return_inverse=True)
    generator = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for tag in range(len(names)):
        own = by_prompt[which == tag]
        counts = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=num_resamples)
        total += counts @ own / len(own)
    low, high = np.quantile(total / len(names), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _variances(differences: Array, tags: Sequence[str]) -> tuple[Array, Array, Array, int]:
    """Variances of the mean difference (...,) from seeds, prompts and their residual, and the prompts' freedom."""
    n = differences.shape[-2]
    which = np.unique(np.asarray(tags), return_inverse=True)[1]
    num_tags = int(which.max()) + 1
    by_seed = differences @ prompt_weights(tags)
    from_seeds = by_seed.var(axis=-1, ddof=1) / n
    from_prompts = np.zeros(differences.shape[:-2])
    residual = np.zeros(differences.shape[:-2])
    for tag in range(num_tags):
        own = differences[..., which == tag]
        count = own.shape[-1]
        if count < 2:
            continue
        from_prompts += own.mean(axis=-2).var(axis=-1, ddof=1) / count
        left = own - own.mean(axis=-1, keepdims=True) - own.mean(axis=-2, keepdims=True)
        left = left + own.mean(axis=(-1, -2), keepdims=True)
        residual += np.square(left).sum(axis=(-1, -2)) / ((n - 1) * (count - 1)) / (n * count)
    freedom = max(1, differences.shape[-1] - num_tags)
    return from_seeds, from_prompts / num_tags**2, residual / num_tags**2, freedom


def crossed(differences: Any, tags: Sequence[str]) -> Estimate:
    """The mean difference when seeds and prompts are both a sample (a mixed model with two crossed random effects).

    Its variance is that over seeds plus that over prompts less the residual's, which both contain; it is never taken
    below the larger of the two. Degrees of freedom are those of the seeds (or of the prompts, if there are fewer of
    them): careful where prompts vary most, but with few seeds Satterthwaite's would promise too much.

    Args:
        differences: (..., seeds, P), at least two seeds.
        tags: P tags.
    """
    differences = np.asarray(differences, dtype=float)
    n = differences.shape[-2]
    seeds, prompts, residual, freedom = _variances(differences, tags)
    variance = np.maximum(seeds + prompts - residual, np.maximum(seeds, prompts))
    mean = (differences @ prompt_weights(tags)).mean(axis=-1)
    return Estimate(mean, np.sqrt(variance), min(n - 1, freedom), n)


def noise_share(differences: Any, tags: Sequence[str]) -> float:
    """The share, in [0, 1], of the variance between seeds that is noise of measurement; NaN where there is none.

    Args:
        differences: (seeds, P), at least two seeds.
        tags: P tags.
    """
    seeds, _, residual, _ = _variances(np.asarray(differences, dtype=float), tags)
    return min(1.0, float(residual / seeds)) if seeds > 0 else float("nan")
