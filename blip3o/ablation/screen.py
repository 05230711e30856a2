"""The live table of an ablation, or a line for every event where there is no terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from blip3o.ablation.runner import State, Task, time_left

_MARKS = {"done": ("●", "green"), "failed": ("✗", "red"), "waiting": ("○", "dim")}


class Screen:
    """Shows tasks: a table row for each variant, a mark for each seed.

    Args:
        jobs: runs at a time.
        console: where to.
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        self.jobs = jobs
        self.console = console or Console()
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self._told: dict[str, State] = {}

    def __enter__(self) -> Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, tasks: list[Task]) -> None:
        """Tells what has changed."""
        if self.live is not None:
            self.live.update(Group(table(tasks), Text(summary_line(tasks, self.jobs))))
            return
        for task in tasks:
            if task.state != self._told.get(task.run.id, "waiting"):
                self._told[task.run.id] = task.state
                text = f"{task.state:8}{task.run.id}  ({summary_line(tasks, self.jobs)})"
                self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def table(tasks: list[Task]) -> Table:
    """A row for each variant: its seeds, done, running with their percentage, failed or waiting."""
    seeds = list(dict.fromkeys(task.run.seed for task in tasks))
    grid = Table(title="ablation")
    grid.add_column("variant")
    for seed in seeds:
        grid.add_column(f"seed {seed}", justify="center")
    by_variant: dict[str, dict[int, Task]] = {}
    for task in tasks:
        by_variant.setdefault(task.run.variant, {})[task.run.seed] = task
    for variant, own in by_variant.items():
        grid.add_row(variant, *(_mark(own[seed]) if seed in own else "" for seed in seeds))
    return grid


def _mark(task: Task) -> Text:
    if task.state == "running":
        return Text(f"{task.share:.0%}", style="cyan")
    mark, style = _MARKS[task.state]
    return Text(mark, style=style)


def summary_line(tasks: list[Task], jobs: int) -> str:
    """How many are done and failed, and how long the rest will take."""
    counts = {state: sum(task.state == state for task in tasks) for state in ("done", "running", "failed", "waiting")}
    text = f"{counts['done']} of {len(tasks)} runs done, {counts['running']} running"
    if counts["failed"]:
        text += f", {counts['failed']} failed"
    left = time_left(tasks, jobs)
    if left is not None and counts["running"] + counts["waiting"]:
        text += f", about {span(left)} left"
    return text


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
