"""The plots of a report, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blip3o.ablation.compare import Results, primary_score, variant_means
from blip3o.ablation.plan import Combination, Plan

_COLORS = (
    "#1f5fae",
    "#c4572b",
    "#2f8f5b",
    "#8a5aa8",
    "#b8860b",
    "#3a9db0",
    "#a83a62",
    "#6b7280",
)  # differ in lightness
_MARKERS = "osD^vPX*"
_DPI = 160


def style(index: int) -> dict[str, Any]:
    """Colour and marker of a variant; no two of 56 are the same."""
    return {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[(index // len(_COLORS) + index) % len(_MARKERS)]}


def label(plan: Plan, combination: Combination) -> str:
    """A variant's name: what differs from the reference."""
    changed = [f"{axis}: {name}" for axis, name in combination if plan.reference[axis] != name]
    if changed:
        return ", ".join(changed)
    return ", ".join(plan.reference.values()) + " (reference)"


def draw_plots(plan: Plan, results: Results, folder: Path) -> dict[str, Path]:
    """Draws what the results allow; returns the files by name, in the report's order."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "quality": _quality(plan, results),
        "curves": _curves(plan, results),
        "frontiers": _frontiers(plan, results),
    }
    files = {}
    for name, figure in figures.items():
        if figure is not None:
            files[name] = folder / f"{name}.png"
            figure.savefig(files[name], dpi=_DPI, metadata={"Software": None})
    return files


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _quality(plan: Plan, results: Results) -> Figure | None:
    """Every variant's mean with its interval, and every seed as a dot."""
    means = variant_means(plan, results)
    if not means:
        return None
    figure = Figure(figsize=(9, 1.3 + 0.42 * len(means)), layout="constrained")
    axes = figure.subplots()
    for row, (combination, (mean, low, high)) in enumerate(means.items()):
        look = style(row)
        seeds = [primary_score(plan, result) for result in results[combination].values()]
        if np.isfinite(low):
            axes.plot([low, high], [row, row], color=look["color"], linewidth=2.5, alpha=0.55, solid_capstyle="butt")
        axes.plot(seeds, [row] * len(seeds), "o", color=look["color"], markersize=4, alpha=0.6)
        axes.plot([mean], [row], "|", color=look["color"], markersize=20, markeredgewidth=3)
    reference = means.get(plan.reference_combination)
    if reference is not None:
        axes.axvline(reference[0], color="#444444", linewidth=1, linestyle="--")
        if plan.margin is not None:
            axes.axvspan(
                reference[0] - plan.margin, reference[0] + plan.margin, color="#000000", alpha=0.06, linewidth=0
            )
    values = [primary_score(plan, result) for own in results.values() for result in own.values()]
    spread = max(np.ptp(values), plan.margin or 0.0, 1e-3)
    ends = [*values, *(end for mean in means.values() for end in mean[1:] if np.isfinite(end))]
    left, right = max(min(ends), min(values) - 1.5 * spread), min(max(ends), max(values) + 1.5 * spread)
    if plan.margin is not None and reference is not None:
        left, right = min(left, reference[0] - plan.margin), max(right, reference[0] + plan.margin)
    axes.set_xlim(left - 0.05 * (right - left + spread), right + 0.05 * (right - left + spread))
    axes.set_yticks(range(len(means)), [label(plan, one) for one in means])
    axes.invert_yaxis()
    axes.set_ylim(len(means) - 0.4, -0.6)
    axes.set_xlabel(plan.primary + ("" if plan.higher_is_better else " (lower is better)"))
    _plain(axes)
    return figure


def _curves(plan: Plan, results: Results) -> Figure | None:
    """Learning curves, against steps and against time."""
    names = curve_names(plan, results)
    if not names:
        return None
    figure = Figure(figsize=(9, 2.9 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for row, name in enumerate(names):
        for column, by in enumerate(("step", "seconds")):
            axes = grid[row][column]
            for index, combination in enumerate(one for one in plan.combinations if results.get(one)):
                look = style(index)
                for result in results[combination].values():
                    points = [(point[by], point[name]) for point in result["curve"] if name in point]
                    axes.plot(*zip(*points, strict=True), color=look["color"], linewidth=0.8, alpha=0.3)
                mean = _mean_curve([result["curve"] for result in results[combination].values()], name, by)
                few = len(mean) < 20
                axes.plot(
                    *mean.T,
                    color=look["color"],
                    linewidth=1.8,
                    marker=look["marker"] if few else None,
                    markersize=4,
                    label=label(plan, combination),
                )
            axes.set_xlabel("step" if by == "step" else "training time (s)")
            axes.set_ylabel(name)
            _plain(axes)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    return figure


def curve_names(plan: Plan, results: Results) -> list[str]:
    """What is drawn as a learning curve: of the score and of training, two logged metrics at most that vary.

    Of training it is the reward where there is one, as a policy's loss says nothing of how well it does, or the loss.
    """
    logged = {name for own in results.values() for result in own.values() for row in result["curve"] for name in row}
    training = "train/reward" if "train/reward" in logged else "train/loss"
    wanted = dict.fromkeys(name for name in (plan.primary, "val/score", training) if name in logged)
    return [name for name in wanted if _varies(results, name)][:2]


def _varies(results: Results, name: str) -> bool:
    """Whether a metric is more than one flat line."""
    runs = [result for own in results.values() for result in own.values()]
    return len({row[name] for result in runs for row in result["curve"] if name in row}) > 1


def _mean_curve(curves: Sequence[Sequence[Mapping[str, float]]], name: str, by: str) -> np.ndarray:
    """Mean over seeds at the steps that all of them recorded: (points, 2)."""
    by_step = [{row["step"]: (row[by], row[name]) for row in curve if name in row} for curve in curves]
    steps = sorted(set.intersection(*(set(own) for own in by_step)))
    return np.array([np.mean([own[step] for own in by_step], axis=0) for step in steps]).reshape(-1, 2)


def _frontiers(plan: Plan, results: Results) -> Figure | None:
    """The score against what it costs; the line joins the variants that no other one beats in both."""
    costs = {
        "time for one picture (s)": lambda result: result["timings"].get("latency_seconds"),
        "training operations a step (GFLOP)": lambda result: (result["flops_per_step"] or 0) / 1e9 or None,
    }
    shown = [one for one in plan.combinations if results.get(one)]
    if not shown:
        return None
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (name, cost) in zip(figure.subplots(1, 2), costs.items(), strict=True):
        points = []
        for index, combination in enumerate(shown):
            runs = list(results[combination].values())
            spent = [cost(result) for result in runs]
            if None in spent:
                continue
            x, y = float(np.mean(spent)), float(np.mean([primary_score(plan, result) for result in runs]))
            points.append((x, y))
            axes.plot([x], [y], linestyle="none", markersize=8, label=label(plan, combination), **style(index))
        best = frontier(points, higher=plan.higher_is_better)
        axes.plot(*zip(*best, strict=True), color="#888888", linewidth=1, zorder=0) if best else None
        axes.margins(0.18)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(name)
        axes.set_ylabel(plan.primary)
        _plain(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not handles:
        handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, max(1, len(labels))), frameon=False, fontsize=9
    )
    return figure


def frontier(points: Sequence[tuple[float, float]], *, higher: bool = True) -> list[tuple[float, float]]:
    """The (cost, score) points that no other one beats, by cost."""
    best: list[tuple[float, float]] = []
    sign = 1 if higher else -1
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best
