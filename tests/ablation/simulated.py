"""Results of runs with a known truth, as `result.json` would hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blip3o.ablation.compare import Results
from blip3o.ablation.plan import Plan

TAGS = [tag for tag in ("single_object", "two_object", "counting") for _ in range(40)]


def simulated_result(chance: float, seed: int, shift: float = 0.0) -> dict[str, Any]:
    """A run that gets every prompt right with a chance; prompts share their luck over variants."""
    luck = np.random.default_rng(seed).uniform(size=len(TAGS))
    right = (luck < chance + shift).astype(float)
    curve = [{"step": step, "seconds": step / 10, "train/loss": 1 / (step + chance)} for step in (1, 2, 3)]
    return {
        "seed": seed,
        "steps": 3,
        "losses": {"train/loss": 0.3},
        "scores": {"shapes/overall": float(right.reshape(3, 40).mean())},
        "prompts": {
            "shapes": [[f"prompt {i}", tag, value] for i, (tag, value) in enumerate(zip(TAGS, right, strict=True))]
        },
        "parameters": {"bridge": 1000, "total": 5_000_000, "trainable": 10},
        "flops_per_step": int(1e9 * (1 + chance)),
        "timings": {
            "train_images_per_second": 100.0,
            "latency_seconds": 0.1 * (1 + chance),
            "images_per_second": 30.0,
            "peak_memory_bytes": 2**30,
            "wall_seconds": 9.0,
        },
        "curve": curve,
        "samples": [],
        "versions": {"torch": "2"},
        **{"git": "abc", "machine": "m", "accelerator": "none", "threads": 1, "jobs": 2, "started": "now"},
    }


def simulated_results(plan: Plan, chances: Mapping[str, float], *, spread: float = 0.0) -> Results:
    """Runs of every combination and seed; a combination's chance is the sum of its variants'."""
    results: Results = {}
    for index, combination in enumerate(plan.combinations):
        chance = sum(chances.get(name, 0.0) for _, name in combination)
        for seed in plan.seeds:
            shift = spread * np.random.default_rng([seed, index]).standard_normal()
            results.setdefault(combination, {})[seed] = simulated_result(chance, seed, shift)
    return results
