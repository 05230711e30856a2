"""Draws docs/curves.png from the metrics that the three shapes runs wrote.

Run from the repository: `python docs/plot_curves.py` after the runs, or with another folder as its argument.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

PANELS = {
    "codec": ["train/l1", "val/score"],
    "tokenizer": ["train/reconstruction", "train/align"],
    "joint": ["train/cross_entropy", "train/flow", "val/score"],
}


def read(run: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column; what a resumed run wrote takes the place of what it repeated."""
    values: dict[int, float] = {}
    for path in sorted(run.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if row.get(column)]
        first = min((int(row["step"]) for row in rows), default=0)
        values = {step: value for step, value in values.items() if step < first + 1}
        values |= {int(row["step"]) + 1: float(row[column]) for row in rows}
    return list(values), list(values.values())


def main(runs: Path, output: Path) -> None:
    """One panel a run, scores on their own axis."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (run, columns) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        right = None
        for color, column in zip(("#1f5fae", "#c2571a", "#2f8f4e"), columns, strict=False):
            target = axes
            if column == "val/score":
                right = target = axes.twinx()
                right.set_ylim(0, 1)
                right.set_ylabel("held-out score")
                color = "#2f8f4e"
            steps, values = read(runs / run, column)
            target.plot(steps, values, color=color, label=column, marker="o" if target is right else None)
        axes.set_yscale("log")
        axes.set_title(run)
        axes.set_xlabel("step")
        lines = axes.get_lines() + (right.get_lines() if right else [])
        axes.legend(lines, [line.get_label() for line in lines], fontsize=7, frameon=False, loc="lower left")
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/shapes"), Path(__file__).with_name("curves.png"))
