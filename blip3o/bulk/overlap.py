"""Two stages over a list of batches, the first of the next batch beside the second of the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Half = TypeVar("Half")
Made = TypeVar("Made")


def two_stages(
    batches: Iterable[Batch],
    first: Callable[[Batch], Half],
    second: Callable[[Batch, Half], Made],
    *,
    device: torch.device,
    overlap: bool,
) -> Iterator[tuple[Batch, Made]]:
    """Yields every batch with what both stages made of it, in order.

    One batch at most is in the second stage, in a thread and, on a GPU, a stream of its own. What is made is the same
    either way: a batch's stages run one after the other, and no two batches share anything that they change.

    Args:
        batches: what to work on.
        first: the first stage.
        second: the second; what it returns must lie on the CPU, so that its work on a GPU is done.
        device: where both compute.
        overlap: whether the stages overlap.
    """
    if not overlap:
        for batch in batches:
            yield batch, second(batch, first(batch))
        return
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def work(batch: Batch, half: Half, ready: torch.cuda.Event | None) -> Made:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            if ready is not None:
                torch.cuda.current_stream(device).wait_event(ready)
            return second(batch, half)

    with ThreadPoolExecutor(max_workers=1) as thread:
        last: tuple[Batch, Future[Made]] | None = None
        for batch in batches:
            half = first(batch)
            ready = None if stream is None else torch.cuda.current_stream(device).record_event()
            done = None if last is None else (last[0], last[1].result())
            last = batch, thread.submit(work, batch, half, ready)
            if done is not None:
                yield done
        if last is not None:
            yield last[0], last[1].result()
