"""A line on the terminal: how many pictures are made, how fast, and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Speed(ProgressColumn):
    """Images a second over the last minutes."""

    def render(self, task: Task) -> Text:
        """Nothing before the second batch."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} images/s")


@contextmanager
def progress(total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A line on stderr where it is a terminal; what is yielded moves it by a number of pictures."""
    console = console or Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=300) as bar:
        task = bar.add_task("images", total=total)
        yield lambda count: bar.advance(task, count)
