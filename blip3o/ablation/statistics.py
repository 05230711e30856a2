"""The statistics of an ablation: differences with their errors, equivalence, corrections, power.

The unit of replication is the seed: one training run gives one number a variant, whatever the number of prompts. All
functions work elementwise on arrays, so that a simulation of many experiments is one call.

What is computed, for a score y[v, s] of variant v and seed s, and a reference r:

- `paired`: d[s] = y[v, s] - y[r, s] over the seeds that both have; the mean of d, its standard error sd(d) / sqrt(n),
  and n - 1 degrees of freedom. Assumes that the d[s] are independent and about normal.
- `welch`: the same for runs that share nothing; two variances, Welch's degrees of freedom.
- `pooled`: the contrasts of the additive model y[v, s] = variant + seed + error (variant + error where runs share
  nothing), whose one error variance is estimated from all variants of an axis. Many more degrees of freedom, at the
  price of the assumption that all variants scatter alike.
- better, worse: a two-sided t-test of no difference. Equivalent: two one-sided t-tests (Schuirmann, 1987) against a
  margin on either side. Each of the two families of tests is corrected by Holm's method over all comparisons of a
  plan, at the full level 1 - confidence. So the chance of any wrong difference is at most that, and so is the chance
  of any wrong equivalence; that of any wrong verdict of either kind can reach 2 (1 - confidence).
- A table's interval has the plan's confidence, 95 % say. Two one-sided tests at 5 % correspond to the 90 % interval
  instead (and corrected ones to a wider one), so an interval may reach beyond the margin of what is equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Verdict = Literal["equivalent", "better", "worse", "undecided"]
_NO_SPREAD = 1e-9  # standard errors below this share of the scores' scale are rounding


@dataclass(frozen=True)
class Estimate:
    """Differences with their standard errors; every field is a number or an array of one shape.

    Attributes:
        difference: the variant's score less the reference's.
        standard_error: of the difference; 0 where the seeds show no spread.
        df: degrees of freedom of the standard error; 0 where one seed leaves none.
        num_seeds: seeds on the smaller side.
    """

    difference: Any
    standard_error: Any
    df: Any
    num_seeds: Any

    @property
    def testable(self) -> Any:
        """Where there is a spread to judge the difference by."""
        scale = _NO_SPREAD * np.maximum(1.0, np.abs(self.difference))
        return (np.asarray(self.df) > 0) & (np.asarray(self.standard_error) > scale)


def mean_interval(values: Any, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of `values` (n,) and its t-interval; the bounds are NaN for a single value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def paired(differences: Any) -> Estimate:
    """Of differences (..., n), one a seed."""
    differences = np.asarray(differences, dtype=float)
    n = differences.shape[-1]
    spread = differences.std(axis=-1, ddof=1) if n > 1 else np.full(differences.shape[:-1], np.nan)
    return Estimate(differences.mean(axis=-1), spread / np.sqrt(n), n - 1, n)


def welch(left: Any, right: Any) -> Estimate:
    """Of scores (..., n) of a variant and (..., m) of its reference, from runs that share nothing."""
    left, right = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    n, m = left.shape[-1], right.shape[-1]
    difference = left.mean(axis=-1) - right.mean(axis=-1)
    if min(n, m) < 2:
        return Estimate(difference, np.full(difference.shape, np.nan), 0, min(n, m))
    a, b = left.var(axis=-1, ddof=1) / n, right.var(axis=-1, ddof=1) / m
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.nan_to_num((a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)))
    return Estimate(difference, np.sqrt(a + b), df, min(n, m))


def pooled(scores: Mapping[str, Mapping[int, float]], reference: str, *, blocks: bool) -> dict[str, Estimate]:
    """Contrasts to the reference with one error variance for all variants, by ordinary least squares.

    Args:
        scores: score by variant and seed; variants may lack seeds.
        reference: the variant that the others are compared with.
        blocks: whether runs of one seed share their data and noise, so that the seed is a term of the model.

    Returns:
        An estimate for each variant but the reference.
    """
    variants = [reference, *(name for name in scores if name != reference)]
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    cells = [(v, s) for v in variants for s in scores[v]]
    design = np.zeros((len(cells), len(variants) + len(seeds) * blocks))
    for row, (variant, seed) in enumerate(cells):
        design[row, 0] = 1
        if variant != reference:
            design[row, variants.index(variant)] = 1
        if blocks:
            design[row, len(variants) + seeds.index(seed)] = 1
    values = np.array([scores[v][s] for v, s in cells])
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ values
    df = len(cells) - int(np.linalg.matrix_rank(design))
    error = float(np.square(values - design @ coefficients).sum()) / df if df else float("nan")
    found = {}
    for index, name in enumerate(variants[1:], start=1):
        shared = len(scores[name].keys() & scores[reference].keys())
        num = shared if blocks else min(len(scores[name]), len(scores[reference]))
        found[name] = Estimate(float(coefficients[index]), float(np.sqrt(error * inverse[index, index])), df, num)
    return found


def interval(estimate: Estimate, confidence: float = 0.95) -> tuple[Any, Any]:
    """The t-interval of the difference; NaN where there is no spread to judge by."""
    df = np.maximum(estimate.df, 1)
    half = np.where(estimate.testable, stats.t.ppf((1 + confidence) / 2, df) * estimate.standard_error, np.nan)
    return estimate.difference - half, estimate.difference + half


def p_difference(estimate: Estimate) -> Any:
    """Two-sided p-value of no difference; 1 where there is no spread to judge by."""
    df, error = np.maximum(estimate.df, 1), np.where(estimate.testable, estimate.standard_error, 1.0)
    return np.where(estimate.testable, 2 * stats.t.sf(np.abs(estimate.difference) / error, df), 1.0)


def p_equivalence(estimate: Estimate, margin: float) -> Any:
    """The p-value of a difference of `margin` or more: the larger of two one-sided tests'; 1 without a spread."""
    df, error = np.maximum(estimate.df, 1), np.where(estimate.testable, estimate.standard_error, 1.0)
    return np.where(estimate.testable, stats.t.sf((margin - np.abs(estimate.difference)) / error, df), 1.0)


def holm(p_values: Any) -> Array:
    """Holm's adjusted p-values (..., K) of K comparisons."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, axis=-1)
    scaled = np.take_along_axis(p_values, order, axis=-1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(scaled, axis=-1), 1.0), axis=-1)
    return adjusted


def verdict(difference: float, p_diff: float, p_equiv: float | None, confidence: float = 0.95) -> Verdict:
    """The verdict from adjusted p-values; a difference shown to lie within the margin is *equivalent* first of all.

    Args:
        difference: where higher is better.
        p_diff: of no difference.
        p_equiv: of a difference beyond the margin, None where equivalence is not asked.
        confidence: 1 less the level of the tests.
    """
    if p_equiv is not None and p_equiv <= 1 - confidence:
        return "equivalent"
    if p_diff <= 1 - confidence:
        return "better" if difference > 0 else "worse"
    return "undecided"


def seeds_needed(
    estimate: Estimate,
    margin: float | None,
    *,
    num_comparisons: int = 1,
    confidence: float = 0.95,
    power: float = 0.8,
    most: int = 1000,
) -> int | None:
    """Seeds a variant at which one of the verdicts would be reached with probability `power`.

    Supposes that the difference and the spread between seeds are those observed, and the first (strictest) level of
    Holm's method. A guess from few seeds is itself rough.

    Returns:
        The number of seeds, more than there are, or None if `most` do not suffice, the spread is unknown, or a single
        seed (whose spread can be that of other variants, if pooled) says too little.
    """
    if not estimate.testable or estimate.num_seeds < 2:
        return None
    level = (1 - confidence) / num_comparisons
    n = np.arange(2, most + 1)
    df = estimate.df / (estimate.num_seeds - 1) * (n - 1)
    error = estimate.standard_error * np.sqrt(estimate.num_seeds / n)
    effect = abs(float(estimate.difference))
    reached = power_difference(effect, error, df, level) >= power
    if margin is not None:
        reached |= power_equivalence(effect, error, df, margin, level) >= power
    return max(int(n[reached.argmax()]), int(estimate.num_seeds) + 1) if reached.any() else None


def power_difference(effect: Any, error: Any, df: Any, level: float) -> Any:
    """Power of the two-sided t-test at `level` for a true difference and its standard error."""
    critical, shift = stats.t.ppf(1 - level / 2, df), np.asarray(effect) / error
    # For shifts beyond 30 the power is 1, and the distribution's own code loses its digits.
    exact = stats.nct.sf(critical, df, np.minimum(shift, 30)) + stats.nct.cdf(-critical, df, np.minimum(shift, 30))
    return np.where(shift > 30, 1.0, exact)


def power_equivalence(effect: Any, error: Any, df: Any, margin: float, level: float) -> Any:
    """Power of the two one-sided tests at `level`, by the usual approximation with the noncentral t-distribution."""
    critical = stats.t.ppf(1 - level, df)
    upper = np.clip((np.asarray(effect) - margin) / error, -30, 30)
    lower = np.clip((np.asarray(effect) + margin) / error, -30, 30)
    return np.clip(stats.nct.cdf(-critical, df, upper) - stats.nct.cdf(critical, df, lower), 0.0, 1.0)
