"""Weighted mixtures of sources, as one endless stream of batches that a stopped run comes back to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from blip3o.data.failures import Failure, Tally
from blip3o.data.pictures import Limits, Unreadable
from blip3o.data.reader import SourceReader
from blip3o.data.sources.base import Record, Source, decode
from blip3o.data.stream import Row


@dataclass(frozen=True)
class Weighted:
    """A source of a mixture.

    Attributes:
        source: where the rows come from.
        weight: how often it is drawn from, relative to the others.
        limits: which pictures are taken, and how many failures are borne.

    Raises:
        ValueError: if the weight is no positive number.
    """

    source: Source
    weight: float = 1.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks the weight."""
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight ({self.weight}) of {self.source.label} must be above 0; leave the source out.")


class Mixture:
    """One reader's endless usable records of several sources, pure in (seed, reader, num_readers).

    Every draw picks a source by its weight; a row that can not be used is counted, listed and passed over, and the
    next of the same source takes its turn.

    Args:
        sources: the sources with their weights.
        seed: of the order.
        reader: number of this reader.
        num_readers: readers that share the sources.
        buffer: rows of a source that are shuffled together.
        state: `state()` of an earlier reader, to go on from there.
    """

    def __init__(
        self,
        sources: Sequence[Weighted],
        *,
        seed: int,
        reader: int = 0,
        num_readers: int = 1,
        buffer: int = 1000,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.sources = list(sources)
        self._seed = (seed, reader)
        weights = np.array([entry.weight for entry in self.sources], dtype=np.float64)
        self._bounds = np.cumsum(weights / weights.sum())[:-1]
        self._drawn = 0 if state is None else int(state["drawn"])
        self._readers: list[SourceReader] = []
        self._tallies: list[Tally] = []
        self._last_good: list[int] = []
        self.news: list[Failure] = []
        for number, entry in enumerate(self.sources):
            kept: dict[str, Any] = state["sources"][number] if state else {}
            place = kept.get("place", (0, 0, 0))
            self._readers.append(
                SourceReader(
                    entry.source,
                    seed=(seed, number),
                    reader=reader,
                    num_readers=num_readers,
                    buffer=buffer,
                    place=(place[0], place[1], place[2]),
                    taken=kept.get("taken", 0),
                )
            )
            self._tallies.append(
                Tally(entry.source.label, entry.limits, rows=kept.get("rows", 0), failed=kept.get("failed", 0))
            )
            self._last_good.append(place[0] if state else -1)

    def next(self) -> Record:
        """The next record.

        Raises:
            ValueError: if a source has more failures than its limits bear, or a whole pass without a usable row.
        """
        draw = np.random.default_rng([*self._seed, self._drawn]).random()
        number = int(np.searchsorted(self._bounds, draw, side="right"))
        self._drawn += 1
        reader, tally = self._readers[number], self._tallies[number]
        while True:
            row = reader.next()
            if reader.passes > self._last_good[number] + 1:
                raise ValueError(
                    f"{tally.source} has no usable row for one of {reader.num_readers} readers.\n{tally.listed()}"
                )
            try:
                record = decode(row, self.sources[number].limits)
            except Unreadable as error:
                self.news.append(tally.bad(row.key, str(error)))
                continue
            tally.good()
            self._last_good[number] = reader.passes
            return record

    def state(self) -> dict[str, Any]:
        """Where it is, as plain numbers."""
        sources = []
        for reader, tally in zip(self._readers, self._tallies, strict=True):
            place, taken = reader.state()
            sources.append({"place": list(place), "taken": taken, "rows": tally.rows, "failed": tally.failed})
        return {"drawn": self._drawn, "sources": sources}


class BatchStream(IterableDataset[Row]):
    """Whole batches of a mixture, each with the `progress` of the reader that made it.

    Workers make batches in turn: batch b of a rank comes from its reader b mod (number of workers). Step b on W ranks
    holds the indices `[b * W * batch_size, (b + 1) * W * batch_size)`, rank r the r-th block of them, as `RowStream`
    has it. An index numbers a row of the run; which row that is depends on the seed and the number of readers.

    Args:
        make_batch: turns `batch_size` records and the first one's index into a batch.
        sources: the mixture.
        seed: of the order.
        batch_size: rows a batch on one rank.
        buffer: rows of a source that are shuffled together.
        rank: number of this process.
        world_size: number of processes.
        first_batch: batches that a resumed run has already seen.
        states: of the readers of this rank, by their numbers on it, where a run is resumed.
    """

    def __init__(
        self,
        make_batch: Callable[[Sequence[Record], int], Row],
        sources: Sequence[Weighted],
        *,
        seed: int,
        batch_size: int,
        buffer: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        states: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        self.make_batch = make_batch
        self.sources = sources
        self.seed = seed
        self.batch_size = batch_size
        self.buffer = buffer
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch
        self.states = states or {}

    def __iter__(self) -> Iterator[Row]:
        """Yields batches; never ends."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batch = self.first_batch + number
        own = batch % count
        mixture = Mixture(
            self.sources,
            seed=self.seed,
            reader=self.rank * count + own,
            num_readers=self.world_size * count,
            buffer=self.buffer,
            state=self.states.get(own),
        )
        while True:
            records = [mixture.next() for _ in range(self.batch_size)]
            row = self.make_batch(records, (batch * self.world_size + self.rank) * self.batch_size)
            news, mixture.news = mixture.news, []
            row["progress"] = {"batch": batch, "reader": own, "state": mixture.state(), "failures": news}
            yield row
            batch += count
