"""An endless, resumable stream of training rows, each a pure function of its index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning import Trainer
from torch.utils.data import IterableDataset, get_worker_info

Row = dict[str, Any]


def refuse_limited_batches(trainer: Trainer | None) -> None:
    """Raises a ValueError if the trainer limits the batches of an epoch: the next one would repeat the same rows."""
    if trainer and trainer.limit_train_batches != 1.0:
        raise ValueError(
            f"limit_train_batches ({trainer.limit_train_batches}) would start the stream of rows anew every epoch; "
            "leave it out and set max_steps."
        )


class RowStream(IterableDataset[Row]):
    """Rows `make_row(0), make_row(1), ...` in an order that workers, ranks and restarts do not change.

    Step b of a run on W ranks holds the indices `[b * W * batch_size, (b + 1) * W * batch_size)`, whatever W is:
    rank r takes the r-th block of `batch_size` of them. Workers take whole batches in turn.

    Args:
        make_row: maps an index to a row.
        batch_size: rows a batch on one rank.
        rank: number of this process.
        world_size: number of processes.
        first_batch: batches to skip; what a resumed run has already seen.
    """

    def __init__(
        self,
        make_row: Callable[[int], Row],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        self.make_row = make_row
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[Row]:
        """Yields rows; never ends."""
        worker = get_worker_info()
        batch, stride = (self.first_batch, 1) if worker is None else (self.first_batch + worker.id, worker.num_workers)
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            for index in range(first, first + self.batch_size):
                yield self.make_row(index)
            batch += stride
