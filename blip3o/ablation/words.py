"""What a report says of a comparison, a variant and a plan, in words; shared by HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from blip3o.ablation.compare import Comparison, Results, variant_means
from blip3o.ablation.plan import Combination, Plan
from blip3o.ablation.plots import label

DESIGNS = {
    "one_factor": "Each variant is compared with the reference, all other axes being at theirs.",
    "grid": "Each variant is compared with the reference of its axis, averaged over all settings of the other axes.",
    "list": "Each listed combination is compared with the reference.",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A large number with a unit."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def gibibytes(value: float | None) -> str:
    """A number of bytes, or a dash for none."""
    return "–" if value is None else f"{value / 2**30:.2f} GiB"


def signed_range(low: float, high: float) -> str:
    """An interval of differences."""
    return f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) and math.isfinite(high) else "–"


def p_value(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def outlook(one: Comparison) -> str:
    """What an undecided comparison lacks."""
    if one.verdict != "undecided":
        return ""
    seeds = int(one.estimate.num_seeds)
    if not one.estimate.testable:
        return "one seed shows no spread" if seeds < 2 else "the seeds show no spread to judge by"
    if seeds < 2:
        return "one seed is too few to tell how many would decide"
    return f"about {one.seeds_needed} seeds would decide" if one.seeds_needed else "1000 seeds would not decide"


def verdict_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Cells of the verdict table; see `verdict_columns`."""
    return [
        [
            f"{one.axis}: {one.variant} against {one.reference}",
            one.verdict,
            f"{one.estimate.difference:+.3f}",
            signed_range(one.low, one.high),
            p_value(one.p_difference),
            p_value(one.p_equivalence),
            str(int(one.estimate.num_seeds)),
            outlook(one),
        ]
        for one in comparisons
    ]


def verdict_columns(plan: Plan) -> list[str]:
    """Heads of the verdict table."""
    level = f"{plan.confidence:.0%} interval"
    return ["comparison", "verdict", "difference", level, "p of no difference", "p beyond margin", "seeds", "outlook"]


def prompt_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Cells of the table of what the prompts add."""
    return [
        [
            f"{one.variant} against {one.reference}",
            signed_range(*one.prompts.these_models),
            signed_range(*one.prompts.other_prompts) if one.prompts.other_prompts else "–",
            "–" if one.prompts.noise_share is None else f"{one.prompts.noise_share:.0%}",
            p_value(one.prompts.mcnemar),
        ]
        for one in comparisons
        if one.prompts is not None
    ]


PROMPT_COLUMNS = ["comparison", "these very models", "other seeds and prompts", "noise share", "McNemar's p"]


def cost_columns(results: Results) -> list[str]:
    """Heads of the cost table, with every part that a run has."""
    parts = dict.fromkeys(name for own in results.values() for result in own.values() for name in result["parameters"])
    parts.pop("trainable", None)
    costs = ["FLOP a step", "training images/s", "peak memory", "time for one picture", "pictures/s"]
    return ["variant", *(f"{name} parameters" for name in parts), *costs]


def cost_rows(plan: Plan, results: Results) -> list[list[str]]:
    """Cells of the cost table: means over the seeds."""
    parts = [name.removesuffix(" parameters") for name in cost_columns(results) if name.endswith(" parameters")]
    rows = []
    for one in shown(plan, results):
        runs = list(results[one].values())

        def mean(name: str, runs: list[dict[str, Any]] = runs) -> float | None:
            values = [result["timings"].get(name) for result in runs]
            return None if None in values else sum(values) / len(values)

        memory, latency = mean("peak_memory_bytes"), mean("latency_seconds")
        gpu_memory = mean("peak_gpu_memory_bytes")  # 0 where there is a GPU, but the run did not use it
        rows.append(
            [
                label(plan, one),
                *(count(runs[0]["parameters"].get(name)) for name in parts),
                count(runs[0]["flops_per_step"]),
                number(mean("train_images_per_second"), 1),
                f"{gibibytes(gpu_memory)} (GPU)" if gpu_memory else gibibytes(memory),
                "–" if latency is None else f"{1000 * latency:.0f} ms",
                number(mean("images_per_second"), 1),
            ]
        )
    return rows


def cost_note(results: Results) -> str:
    """What the times of the cost table were measured amid; empty where each run had a machine of its own."""
    jobs = [result.get("jobs") for own in results.values() for result in own.values()]
    most = max((one for one in jobs if one), default=1)
    if most == 1:
        return ""
    return (
        f"Images/s, pictures/s and the time for one picture were measured while up to {most} runs shared the machine; "
        "a run that has it alone is faster."
    )


def score_columns(plan: Plan, results: Results) -> list[str]:
    """Heads of the score table: the primary score, its interval, and everything else that was scored."""
    return ["variant", "seeds", plan.primary, f"{plan.confidence:.0%} interval", *_other_scores(plan, results)]


def score_rows(plan: Plan, results: Results) -> list[list[str]]:
    """Cells of the score table: means over the seeds."""
    rows = []
    for one, (mean, low, high) in variant_means(plan, results).items():
        runs = list(results[one].values())
        interval = f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "–"
        others = [
            number(sum(run["scores"].get(name, math.nan) for run in runs) / len(runs))
            for name in _other_scores(plan, results)
        ]
        rows.append([label(plan, one), str(len(runs)), number(mean), interval, *others])
    return rows


def _other_scores(plan: Plan, results: Results) -> list[str]:
    names = dict.fromkeys(name for own in results.values() for result in own.values() for name in result["scores"])
    return [name for name in names if name != plan.primary]


def shown(plan: Plan, results: Results) -> list[Combination]:
    """The variants that have a finished run."""
    return [one for one in plan.combinations if results.get(one)]


def method(plan: Plan) -> list[str]:
    """How the verdicts come about, in sentences."""
    level = f"{plan.confidence:.0%}"
    paired = "Runs of one seed share the order of their data and their noise, so differences are taken seed by seed."
    alone = (
        "Runs share no seed of training, so the two sides' scatter adds up (Welch's t-test); all are scored on the "
        "same captions with the same noise."
    )
    own = "Each comparison's error comes from its own seeds."
    pooled = "The error comes from all variants of an axis together, which supposes that they scatter alike over seeds."
    told = [
        DESIGNS[plan.design],
        "The unit of replication is the seed. " + (paired if plan.pairing else alone),
        pooled if plan.variance == "pooled" else own,
        f"Better and worse: a two-sided t-test at {1 - plan.confidence:.2g}.",
    ]
    if plan.margin is not None:
        told.append(
            f"Equivalent: two one-sided t-tests show a difference of less than {plan.margin:g} either way; this comes "
            "first, so that a real but negligible difference counts as none."
        )
    wrong = 1 - plan.confidence
    if plan.margin is None:
        told.append(f"The tests are corrected by Holm's method over all comparisons; the {level} intervals are not.")
    else:
        told.append(
            "Either kind of test is corrected by Holm's method over all comparisons, at the full level: the chance of "
            f"any wrong verdict can reach {wrong:.2g} for differences, as much for equivalences, and {2 * wrong:.2g} "
            "for both together."
        )
        told.append(
            f"The table's {level} intervals are not corrected, and wider than the {1 - 2 * wrong:.0%} intervals that "
            "two one-sided tests correspond to: that of an equivalent variant may reach beyond the margin."
        )
    told.append(
        "The seeds said to be needed are for a power of 80 %, if difference and scatter are those seen here; few seeds "
        "guess both badly."
    )
    return told
