"""RowStream: ranks, workers and restarts see the same rows in the same global order."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from torch.utils.data import DataLoader

from blip3o.data.stream import RowStream


def make_row(index: int) -> dict[str, Any]:
    return {"index": index, "square": index**2}


def batches(count: int, *, num_workers: int = 0, **arguments: Any) -> list[list[int]]:
    """The indices of the first batches of a loader."""
    stream = RowStream(make_row, **arguments)
    loader = DataLoader(stream, batch_size=arguments["batch_size"], num_workers=num_workers)
    found = []
    for batch in islice(iter(loader), count):
        assert (batch["index"] ** 2 == batch["square"]).all()
        found.append(batch["index"].tolist())
    return found


def test_one_process_sees_every_index_once_in_order() -> None:
    assert batches(3, batch_size=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_of_a_step_share_the_rows_of_one_process(world_size: int) -> None:
    single = batches(4, batch_size=6)
    ranks = [batches(4, batch_size=6 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [[index for rank in step for index in rank] for step in zip(*ranks, strict=True)] == single


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_keep_the_order(num_workers: int) -> None:
    arguments = {"batch_size": 2, "rank": 1, "world_size": 2, "first_batch": 1}
    assert batches(7, num_workers=num_workers, **arguments) == batches(7, **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restart_goes_on_where_the_run_stopped(num_workers: int) -> None:
    whole = batches(6, batch_size=3, rank=1, world_size=2)
    rest = batches(4, batch_size=3, rank=1, world_size=2, first_batch=2, num_workers=num_workers)
    assert rest == whole[2:]


def test_iterating_again_starts_again() -> None:
    stream = RowStream(make_row, batch_size=2, first_batch=1)
    first, second = (list(islice(iter(stream), 5)) for _ in range(2))
    assert first == second and first[0]["index"] == 2


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size \(0\)"):
        RowStream(make_row, batch_size=0)
