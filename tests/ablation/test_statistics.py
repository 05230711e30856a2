"""Known answers: textbook numbers, other libraries' results, and error rates over many simulated ablations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from blip3o.ablation.statistics import (
    Estimate,
    holm,
    interval,
    mean_interval,
    p_difference,
    p_equivalence,
    paired,
    pooled,
    power_difference,
    power_equivalence,
    seeds_needed,
    verdict,
    welch,
)

RNG = np.random.default_rng(0)


def normal(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> np.ndarray:
    return mean + std * np.random.default_rng(seed).standard_normal(shape)


def test_intervals_and_p_values_are_those_of_scipy_and_statsmodels() -> None:
    left, right = normal(5, mean=0.3), normal(5, seed=1)
    d = left - right
    one = paired(d)
    low, high = interval(one, 0.9)
    expected = stats.ttest_rel(left, right)
    assert p_difference(one) == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert mean_interval(d, 0.9) == pytest.approx((d.mean(), *expected.confidence_interval(0.9)))
    assert p_equivalence(one, 1.5) == pytest.approx(DescrStatsW(d).ttost_mean(-1.5, 1.5)[0])
    two, other = welch(left, right[:4]), stats.ttest_ind(left, right[:4], equal_var=False)
    assert (p_difference(two), two.df) == pytest.approx((other.pvalue, other.df))


@pytest.mark.parametrize("blocks", [True, False])
def test_pooled_contrasts_are_those_of_the_analysis_of_variance(blocks: bool) -> None:
    values = normal(3, 4) + np.arange(4) * 2.0 * blocks
    scores = {name: dict(enumerate(row)) for name, row in zip("abc", values, strict=True)}
    found = pooled(scores, "a", blocks=blocks)
    residual = values - values.mean(1, keepdims=True)
    if blocks:
        residual = residual - values.mean(0) + values.mean()
    df = 6 if blocks else 9
    error = np.sqrt(np.square(residual).sum() / df * 2 / 4)
    assert found.keys() == {"b", "c"}
    for name, row in zip("bc", values[1:], strict=True):
        one = found[name]
        assert (one.difference, one.standard_error, one.df, one.num_seeds) == pytest.approx(
            (row.mean() - values[0].mean(), error, df, 4)
        )


def test_a_seed_that_only_the_reference_has_says_nothing_about_paired_differences() -> None:
    scores = {"a": {0: 0.5, 1: 0.6, 2: 0.9}, "b": {0: 0.7, 1: 0.7}}
    one = pooled(scores, "a", blocks=True)["b"]
    assert (one.difference, one.df, one.num_seeds) == (pytest.approx(0.15), 1, 2)
    assert one.standard_error == pytest.approx(paired([0.2, 0.1]).standard_error)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.01, 0.05])
def test_wrong_verdicts_are_no_more_frequent_than_the_level(n: int, spread: float) -> None:
    """100,000 ablations of `n` seeds: no true difference, and a true difference of exactly the margin."""
    num, margin = 100_000, 0.05
    none = paired(normal(num, n, std=spread))
    assert (p_difference(none) <= 0.05).mean() == pytest.approx(0.05, abs=0.003)
    at_margin = paired(normal(num, n, mean=margin, std=spread))
    rate = (p_equivalence(at_margin, margin) <= 0.05).mean()
    assert rate <= 0.053
    if spread == 0.01 and n > 2:
        assert rate == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize("n", [3, 6])
def test_holm_keeps_the_family_s_error_rate(n: int) -> None:
    """Four variants against one reference, whose differences it correlates, none truly different."""
    num = 20_000
    scores = normal(num, 5, n)
    p = np.stack([p_difference(paired(scores[:, k] - scores[:, 0])) for k in range(1, 5)], axis=1)
    assert (holm(p).min(axis=1) <= 0.05).mean() <= 0.053
    assert (p.min(axis=1) <= 0.05).mean() > 0.1, "uncorrected, it would not be kept"


def test_pooled_verdicts_keep_the_level_too() -> None:
    num = 2000
    wrong = {0.0: 0, 1.5: 0}
    for effect in wrong:
        values = normal(num, 3, 3) + normal(num, 1, 3, std=3.0, seed=1) + np.array([0, 0, effect])[:, None]
        for row in values:
            one = pooled({str(k): dict(enumerate(own)) for k, own in enumerate(row)}, "0", blocks=True)["2"]
            wrong[effect] += p_difference(one) <= 0.05 if effect == 0 else p_equivalence(one, 1.5) <= 0.05
    assert wrong[0.0] / num == pytest.approx(0.05, abs=0.015)
    assert wrong[1.5] / num <= 0.065


def test_holm_is_statsmodels_own() -> None:
    p = RNG.uniform(size=9) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    many = RNG.uniform(size=(5, 4))
    assert holm(many)[3] == pytest.approx(holm(many[3]))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(holm([])) == 0


def test_verdicts() -> None:
    assert verdict(0.2, 0.01, 0.9) == "better"
    assert verdict(-0.2, 0.01, 0.9) == "worse"
    assert verdict(0.01, 0.01, 0.02) == "equivalent"  # a real difference, and smaller than the margin
    assert verdict(0.2, 0.2, 0.2) == verdict(0.2, 0.2, None) == "undecided"
    assert verdict(0.2, 0.04, 0.9, confidence=0.99) == "undecided"


def test_one_seed_or_no_spread_decides_nothing() -> None:
    for one in (paired([0.3]), paired([0.1, 0.1, 0.1]), welch([0.5], [0.1]), welch([0.5, 0.5], [0.1, 0.1])):
        assert (p_difference(one), p_equivalence(one, 0.5)) == (1, 1)
        assert np.isnan(interval(one)).all()
        assert seeds_needed(one, 0.5) is None
    assert np.isnan(mean_interval([0.3])[1:]).all()


def test_power_is_that_of_statsmodels_and_of_simulation() -> None:
    n, effect = 6, 1.2
    expected = TTestPower().power(effect_size=effect, nobs=n, alpha=0.05)
    assert power_difference(effect, 1 / np.sqrt(n), n - 1, 0.05) == pytest.approx(expected, abs=1e-6)
    simulated = (p_equivalence(paired(normal(100_000, n, mean=0.3)), 1.5) <= 0.05).mean()
    assert power_equivalence(0.3, 1 / np.sqrt(n), n - 1, 1.5, 0.05) == pytest.approx(simulated, abs=0.03)
    assert power_difference(9.0, 0.1, 3, 0.05) == 1


@pytest.mark.parametrize(("effect", "margin"), [(0.04, None), (0.0, 0.04)])
def test_the_seeds_said_to_be_needed_decide_four_times_in_five(effect: float, margin: float | None) -> None:
    spread, n = 0.03, 3
    needed = seeds_needed(Estimate(effect, spread / np.sqrt(n), n - 1, n), margin)
    assert needed is not None and needed > n

    def decided(count: int) -> float:
        one = paired(normal(50_000, count, mean=effect, std=spread))
        p = p_difference(one) if margin is None else p_equivalence(one, margin)
        return float((p <= 0.05).mean())

    assert decided(needed) >= 0.78
    assert decided(needed - 2) < 0.8


def test_an_effect_near_the_margin_needs_more_seeds_than_one_may_have() -> None:
    assert seeds_needed(Estimate(1e-6, 0.5, 2, 3), None) is None
    one = Estimate(0.03, 0.02, 2, 3)
    assert (seeds_needed(one, 0.05) or 0) <= (seeds_needed(one, None) or 0)
