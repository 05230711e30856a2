"""What a measurement found, as tables and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from blip3o import __version__
from blip3o.bench.timing import Spread
from blip3o.info import describe_machine


@dataclass(frozen=True)
class Report:
    """One measurement.

    Attributes:
        title: what was measured.
        settings: on what.
        checks: what was compared before any time was taken, and found equal or counted, in words by name.
        times: seconds by side and stage.
        baseline: the side that others are compared with, None where there is none.
        notes: figures that are no times, by name: rates, limits, memory.
        rates: more repeated figures than seconds, by name, such as rows a second.
    """

    title: str
    settings: dict[str, Any]
    times: dict[str, dict[str, Spread]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    baseline: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, Spread] = field(default_factory=dict)

    def speedups(self) -> dict[str, float]:
        """How many times as fast as the baseline every other side is, by medians of `total`."""
        if self.baseline is None:
            return {}
        base = self.times[self.baseline]["total"].median
        return {name: base / stages["total"].median for name, stages in self.times.items() if name != self.baseline}

    def to_json(self) -> dict[str, Any]:
        """Everything, with the machine it was measured on."""
        return {
            "blip3o": __version__,
            "machine": describe_machine(),
            "threads": torch.get_num_threads(),
            "title": self.title,
            "settings": self.settings,
            "checks": self.checks,
            "seconds": {
                side: {name: one.to_json() for name, one in stages.items()} for side, stages in self.times.items()
            },
            "baseline": self.baseline,
            "speedups": self.speedups(),
            "rates": {name: one.to_json() for name, one in self.rates.items()},
            "notes": self.notes,
        }


def check_writable(path: Path) -> None:
    """Raises a ValueError where a report can not be written to `path`, before anything is measured."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"output ({path}) must be a file in a folder that exists.")


def write_report(report: Report, path: Path) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(report.to_json(), indent=2) + "\n")


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints settings, checks, a table of times and the notes."""
    console = console or Console()
    console.print(f"{report.title}: " + ", ".join(f"{key}={value}" for key, value in report.settings.items()))
    console.print(f"{describe_machine()}, {torch.get_num_threads()} threads")
    for name, told in report.checks.items():
        console.print(f"checked {name}: {told}")
    if report.times:
        console.print(_times(report))
    for title, values in (("rate", report.rates), ("", report.notes)):
        if values:
            console.print(_figures(title, values))


def _times(report: Report) -> Table:
    table = Table(title="milliseconds: median (first to third quartile)")
    table.add_column("side")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    if report.baseline:
        table.add_column(f"times as fast as {report.baseline}", justify="right")
    speedups = report.speedups()
    for side, stages in report.times.items():
        for name, spread in stages.items():
            total = name == "total"
            cells = [side, name, _spread(spread, 1e3)]
            if report.baseline:
                cells.append(f"{speedups[side]:.2f}" if total and side in speedups else "")
            table.add_row(*cells, style="bold" if total else None)
    return table


def _figures(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title or None, show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in values.items():
        if isinstance(value, Spread):
            table.add_row(name, _spread(value, 1))
        elif isinstance(value, dict):
            for inner, one in value.items():
                table.add_row(f"{name}: {inner}".replace("_", " "), _told(one))
        else:
            table.add_row(name.replace("_", " "), _told(value))
    return table


def _spread(spread: Spread, factor: float) -> str:
    first, median, third = (_told(float(value * factor)) for value in spread.quartiles)
    return f"{median} ({first} to {third})"


def _told(value: Any) -> str:
    """A number with four digits."""
    return (
        f"{value:.4g}"
        if isinstance(value, float) and value < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
