"""Verdicts from the results of runs whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3o.ablation.compare import Comparison, compare, contrasts
from blip3o.ablation.plan import Plan, read_plan
from blip3o.ablation.statistics import paired
from blip3o.ablation.words import outlook
from tests.ablation.plans import write_plan
from tests.ablation.simulated import simulated_results

AXES = {"head": {"ref": {}, "same": {}, "good": {}, "bad": {}}}
CHANCES = {"ref": 0.5, "same": 0.505, "good": 0.7, "bad": 0.3}


def plan(folder: Path, **changes: Any) -> Plan:
    return read_plan(write_plan(folder, **{"axes": AXES, "seeds": [0, 1, 2, 3], **changes}))


def verdicts(comparisons: list[Comparison]) -> dict[str, str]:
    return {one.variant: one.verdict for one in comparisons}


@pytest.mark.parametrize("variance", ["own", "pooled"])
@pytest.mark.parametrize("pairing", [True, False])
def test_clear_cases_are_decided(tmp_path: Path, variance: str, pairing: bool) -> None:
    one = plan(tmp_path, variance=variance, pairing=pairing, margin=0.15)
    found = compare(one, simulated_results(one, CHANCES, spread=0.005))
    assert verdicts(found) == {"same": "equivalent", "good": "better", "bad": "worse"}
    for comparison in found:
        assert comparison.low < comparison.estimate.difference < comparison.high
        assert comparison.seeds_needed is None


def test_lower_can_be_better(tmp_path: Path) -> None:
    one = plan(tmp_path, higher_is_better=False, equivalence=False, margin=None)
    found = compare(one, simulated_results(one, CHANCES, spread=0.005))
    assert verdicts(found) == {"same": "undecided", "good": "worse", "bad": "better"}
    assert all(comparison.p_equivalence is None for comparison in found)


def test_scatter_leaves_it_open_and_says_how_many_seeds_would_do(tmp_path: Path) -> None:
    one = plan(tmp_path, seeds=[0, 1, 2])
    found = compare(one, simulated_results(one, CHANCES | {"good": 0.6}, spread=0.1))
    undecided = [comparison for comparison in found if comparison.verdict == "undecided"]
    assert undecided
    assert all(comparison.seeds_needed is None or comparison.seeds_needed > 3 for comparison in undecided)
    assert any(comparison.seeds_needed for comparison in undecided)


def test_one_seed_decides_nothing_but_its_prompts_are_compared(tmp_path: Path) -> None:
    one = plan(tmp_path, seeds=[0])
    found = {c.variant: c for c in compare(one, simulated_results(one, CHANCES))}
    assert {c.verdict for c in found.values()} == {"undecided"}
    for name in ("good", "bad"):
        prompts = found[name].prompts
        assert prompts is not None and prompts.mcnemar is not None and prompts.mcnemar < 0.001
        assert prompts.other_prompts is None and math.isnan(found[name].low)
    same = found["same"].prompts
    assert same is not None and same.these_models[0] <= 0 <= same.these_models[1]


def test_a_run_that_failed_costs_its_pair_alone(tmp_path: Path) -> None:
    one = plan(tmp_path)
    results = simulated_results(one, CHANCES, spread=0.01)
    good = next(c for c in one.combinations if c == (("head", "good"),))
    del results[good][2]
    found = {c.variant: c for c in compare(one, results)}
    assert (found["good"].estimate.num_seeds, found["bad"].estimate.num_seeds) == (3, 4)
    del results[good]
    assert "good" not in verdicts(compare(one, results))


def test_a_grid_compares_main_effects(tmp_path: Path) -> None:
    axes = {"p": {"a": {}, "b": {}}, "q": {"x": {}, "y": {}}}
    one = plan(tmp_path, axes=axes, design="grid")
    results = simulated_results(one, {"a": 0.3, "b": 0.45, "x": 0.0, "y": 0.1}, spread=0.01)
    assert [(c.axis, c.variant, len(c.pairs)) for c in contrasts(one)] == [("p", "b", 2), ("q", "y", 2)]
    found = compare(one, results)[0]
    score = {cell: [run["scores"]["shapes/overall"] for run in own.values()] for cell, own in results.items()}
    means = {p: np.mean([score[(("p", p), ("q", q))] for q in ("x", "y")], axis=0) for p in ("a", "b")}
    expected = paired(means["b"] - means["a"])
    assert found.estimate.difference == pytest.approx(expected.difference)
    assert found.estimate.standard_error == pytest.approx(expected.standard_error)


def test_a_variant_with_one_seed_does_not_say_how_many_would_do(tmp_path: Path) -> None:
    one = plan(tmp_path, variance="pooled", margin=1e-4)
    results = simulated_results(one, CHANCES, spread=0.1)
    same = next(c for c in one.combinations if c == (("head", "same"),))
    results[same] = {0: results[same][0]}
    found = next(c for c in compare(one, results) if c.variant == "same")
    assert (found.verdict, found.seeds_needed) == ("undecided", None)
    assert outlook(found) == "one seed is too few to tell how many would decide"


def test_an_unknown_score_is_named_with_its_line(tmp_path: Path) -> None:
    one = plan(tmp_path, primary="val/flo", higher_is_better=False)
    with pytest.raises(ValueError, match=r"plan.yaml:\d+: runs have no score 'val/flo'; name one of"):
        compare(one, simulated_results(one, CHANCES))
