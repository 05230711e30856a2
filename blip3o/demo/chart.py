"""The chart of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blip3o.training.history import Metrics


def draw_losses(steps: Sequence[Metrics], guess: float, path: Path) -> None:
    """Draws cross-entropy and flow loss by step, as SVG.

    Args:
        steps: metrics of each step.
        guess: cross-entropy of guessing, drawn as a line, in nats.
        path: file to write.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = range(1, len(steps) + 1)
    titles = {"cross_entropy": "AR model: cross-entropy (nats a token)", "flow": "Diffusion head: flow-matching loss"}
    for axes, (name, title) in zip((left, right), titles.items(), strict=True):
        values = [step[name] for step in steps]
        axes.plot(numbers, values, color="#1f5fae", linewidth=2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.axhline(guess, color="#444444", linestyle="--", linewidth=1, label="guessing evenly")
    left.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
