"""Seconds: taking them stage by stage, and telling them as a median with its quartiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class Stopwatch:
    """Takes the time of named stages; on CUDA by events, so that the device is waited for once, at the end.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside towards `name`."""
        start = self._now()
        yield
        self._marks.setdefault(name, []).append((start, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, and their sum as `total`."""
        if self._cuda:
            torch.cuda.synchronize()
        taken = {name: sum(self._between(*mark) for mark in marks) for name, marks in self._marks.items()}
        return taken | {"total": sum(taken.values())}

    def _now(self) -> Any:
        """A point in time: seconds, or an event of CUDA."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000 if self._cuda else end - start


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing.

    Attributes:
        values: in the order they were taken.
    """

    values: tuple[float, ...]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The first quartile, the median and the third quartile."""
        first, median, third = np.percentile(self.values, [25, 50, 75])
        return float(first), float(median), float(third)

    @property
    def median(self) -> float:
        """The median."""
        return self.quartiles[1]

    def to_json(self) -> dict[str, object]:
        """Median, quartiles and the values themselves."""
        first, median, third = self.quartiles
        return {"median": median, "first_quartile": first, "third_quartile": third, "values": list(self.values)}


def compare(
    sides: Mapping[str, Callable[[Stopwatch], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, Spread]]:
    """Times sides in turns, so that whatever else the machine does falls on all of them alike.

    Args:
        sides: by name; each does its work once and marks its stages.
        repeats: timed rounds, after one that warms up.
        device: where the work is done.

    Returns:
        Seconds by side and stage, with `total`.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            watch = Stopwatch(device)
            run(watch)
            seconds = watch.seconds()
            if turn:
                taken[name].append(seconds)
    return {
        name: {stage: Spread(tuple(one[stage] for one in rounds)) for stage in rounds[0]}
        for name, rounds in taken.items()
    }
