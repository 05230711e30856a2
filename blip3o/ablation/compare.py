"""From the results of a plan's runs to a mean for every variant and a verdict for every comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3o.ablation.plan import Combination, Plan
from blip3o.ablation.prompt_statistics import bootstrap_interval, crossed, mcnemar, noise_share
from blip3o.ablation.runs import Run
from blip3o.ablation.statistics import (
    Estimate,
    Verdict,
    holm,
    interval,
    mean_interval,
    p_difference,
    p_equivalence,
    paired,
    pooled,
    seeds_needed,
    verdict,
    welch,
)

Results = dict[Combination, dict[int, dict[str, Any]]]
"""What the finished runs wrote, by variant and seed."""


@dataclass(frozen=True)
class Prompts:
    """What the prompts add to a comparison; see `blip3o.ablation.prompt_statistics`.

    Attributes:
        these_models: bootstrap interval over prompts, for the trained models at hand.
        other_prompts: interval with seeds and prompts both random; None with one seed.
        noise_share: part of the scatter between seeds that is noise of measurement; None with one seed.
        mcnemar: exact p-value for the models of a single seed; None with more.
    """

    these_models: tuple[float, float]
    other_prompts: tuple[float, float] | None = None
    noise_share: float | None = None
    mcnemar: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference of its axis.

    Attributes:
        axis: what varies; `combination` where a plan lists combinations.
        variant: its name.
        reference: what it is compared with.
        estimate: difference, standard error, degrees of freedom, seeds.
        low: lower end of the difference's interval (NaN where nothing can be said).
        high: upper end.
        p_difference: of no difference, Holm-corrected.
        p_equivalence: of a difference beyond the margin, Holm-corrected; None where equivalence is not asked.
        verdict: of the four.
        seeds_needed: to decide, where undecided and known.
        prompts: what the prompts add, where the score has results by prompt.
    """

    axis: str
    variant: str
    reference: str
    estimate: Estimate
    low: float
    high: float
    p_difference: float
    p_equivalence: float | None
    verdict: Verdict
    seeds_needed: int | None
    prompts: Prompts | None


@dataclass(frozen=True)
class Contrast:
    """What is compared: the mean over the first of each pair of combinations less that over the second."""

    axis: str
    variant: str
    reference: str
    pairs: tuple[tuple[Combination, Combination], ...]


def gather(plan: Plan, done: Sequence[tuple[Run, dict[str, Any]]]) -> Results:
    """Results by variant and seed, without those of runs that diverged."""
    results: Results = {}
    for run, result in done:
        if diverged(plan, result):
            continue
        results.setdefault(run.combination, {})[run.seed] = result
    return results


def primary_score(plan: Plan, result: dict[str, Any]) -> float:
    """The score that a plan compares: one of the metrics', or else a loss.

    Raises:
        ValueError: if the run has none of that name.
    """
    known = result["losses"] | result["scores"]
    if plan.primary not in known:
        plan.source.fail(("primary",), f"runs have no score {plan.primary!r}; name one of {', '.join(known)}.")
    return float(known[plan.primary])


def diverged(plan: Plan, result: dict[str, Any]) -> bool:
    """Whether the primary score is no finite number, so that no mean or test could hold it."""
    return not math.isfinite(primary_score(plan, result))


def contrasts(plan: Plan) -> list[Contrast]:
    """What a plan's design compares.

    `one_factor`: each variant with the reference, all other axes at theirs. `grid`: each variant with the reference of
    its axis, averaged over all settings of the other axes (the main effect). `list`: each combination with the
    reference.
    """
    reference = plan.reference_combination
    if plan.design == "list":
        found = []
        for one in plan.combinations[1:]:
            changed = [(axis, name) for axis, name in one if plan.reference[axis] != name]
            name = " + ".join(variant for _, variant in changed)
            found.append(Contrast("combination", name, "+".join(name for _, name in reference), ((one, reference),)))
        return found
    found = []
    for axis, variants in plan.axes.items():
        bases = [one for one in plan.combinations if dict(one)[axis] == plan.reference[axis]]
        if plan.design == "one_factor":
            bases = [reference]
        for variant in variants:
            if variant != plan.reference[axis]:
                pairs = tuple((tuple((dict(base) | {axis: variant}).items()), base) for base in bases)
                found.append(Contrast(axis, variant, plan.reference[axis], pairs))
    return found


def variant_means(plan: Plan, results: Results) -> dict[Combination, tuple[float, float, float]]:
    """Mean and interval over seeds of the primary score, for every variant that has a finished run."""
    return {
        one: mean_interval([primary_score(plan, result) for result in results[one].values()], plan.confidence)
        for one in plan.combinations
        if results.get(one)
    }


def compare(plan: Plan, results: Results) -> list[Comparison]:
    """Every comparison for which both sides have a finished run, corrected over all of them."""
    found = [(contrast, _sides(plan, results, contrast)) for contrast in contrasts(plan)]
    found = [(contrast, sides) for contrast, sides in found if _enough(plan, sides)]
    estimates = _estimates(plan, found)
    raw_difference = [float(p_difference(one)) for one in estimates]
    adjusted_difference = holm(raw_difference)
    adjusted_equivalence: Sequence[float | None] = [None] * len(estimates)
    if plan.margin is not None:
        adjusted_equivalence = list(holm([float(p_equivalence(one, plan.margin)) for one in estimates]))
    comparisons = []
    for index, (contrast, _) in enumerate(found):
        estimate, p_diff, p_equiv = estimates[index], float(adjusted_difference[index]), adjusted_equivalence[index]
        gain = estimate.difference if plan.higher_is_better else -estimate.difference
        told = verdict(gain, p_diff, p_equiv, plan.confidence)
        low, high = interval(estimate, plan.confidence)
        needed = None
        if told == "undecided":
            needed = seeds_needed(estimate, plan.margin, num_comparisons=len(estimates), confidence=plan.confidence)
        comparisons.append(
            Comparison(
                axis=contrast.axis,
                variant=contrast.variant,
                reference=contrast.reference,
                estimate=estimate,
                low=float(low),
                high=float(high),
                p_difference=p_diff,
                p_equivalence=None if p_equiv is None else float(p_equiv),
                verdict=told,
                seeds_needed=needed,
                prompts=_prompts(plan, results, contrast),
            )
        )
    return comparisons


Sides = tuple[dict[int, float], dict[int, float]]


def _sides(plan: Plan, results: Results, contrast: Contrast) -> Sides:
    """The score of either side by seed, averaged over the pairs; seeds that lack a run of it are left out."""

    def side(combinations: list[Combination]) -> dict[int, float]:
        runs = [results.get(one, {}) for one in combinations]
        seeds = [seed for seed in runs[0] if all(seed in own for own in runs)]
        return {seed: float(np.mean([primary_score(plan, own[seed]) for own in runs])) for seed in seeds}

    return side([left for left, _ in contrast.pairs]), side([right for _, right in contrast.pairs])


def _enough(plan: Plan, sides: Sides) -> bool:
    left, right = sides
    return bool(left.keys() & right.keys()) if plan.pairing else bool(left and right)


def _estimates(plan: Plan, found: Sequence[tuple[Contrast, Sides]]) -> list[Estimate]:
    """An estimate for each comparison, as the plan's pairing and variance ask."""
    if plan.variance == "pooled":
        by_axis: dict[str, dict[str, dict[int, float]]] = {}
        names = {axis: one.reference for axis, one in ((contrast.axis, contrast) for contrast, _ in found)}
        for contrast, (left, right) in found:
            by_axis.setdefault(contrast.axis, {})[contrast.variant] = left
            by_axis[contrast.axis][contrast.reference] = right
        fitted = {axis: pooled(own, names[axis], blocks=plan.pairing) for axis, own in by_axis.items()}
        return [fitted[contrast.axis][contrast.variant] for contrast, _ in found]
    estimates = []
    for _, (left, right) in found:
        if plan.pairing:
            estimates.append(paired([left[seed] - right[seed] for seed in left if seed in right]))
        else:
            estimates.append(welch(list(left.values()), list(right.values())))
    return estimates


def _prompts(plan: Plan, results: Results, contrast: Contrast) -> Prompts | None:
    """The comparison prompt by prompt, where the primary score is an overall one with results by prompt."""
    metric, _, name = plan.primary.partition("/")
    if name != "overall":
        return None
    tables = []
    for left, right in contrast.pairs:
        own, other = results.get(left, {}), results.get(right, {})
        seeds = [seed for seed in own if seed in other]
        rows = [(own[seed]["prompts"].get(metric), other[seed]["prompts"].get(metric)) for seed in seeds]
        if not rows or not all(a and b and [r[:2] for r in a] == [r[:2] for r in b] for a, b in rows):
            return None
        tables.append(dict(zip(seeds, rows, strict=True)))
    seeds = [seed for seed in tables[0] if all(seed in table for table in tables)]
    if not seeds:
        return None
    tags = [tag for _, tag, _ in tables[0][seeds[0]][0]]
    values = np.array([[[[r[2] for r in side] for side in table[seed]] for seed in seeds] for table in tables])
    differences = (values[:, :, 0] - values[:, :, 1]).mean(axis=0)
    bounds = bootstrap_interval(differences, tags, confidence=plan.confidence)
    if len(seeds) > 1:
        low, high = interval(crossed(differences, tags), plan.confidence)
        return Prompts(bounds, (float(low), float(high)), noise_share(differences, tags))
    binary = len(tables) == 1 and bool(np.isin(values, (0, 1)).all())
    return Prompts(bounds, mcnemar=mcnemar(values[0, 0, 0], values[0, 0, 1]) if binary else None)
