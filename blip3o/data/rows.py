"""A data module's rows as often as they are wanted: a number of training rows, one pass, what is held out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning import LightningDataModule

from blip3o.data.failures import Tally
from blip3o.data.images import ImageDataModule
from blip3o.data.pictures import Unreadable
from blip3o.data.reader import SourceReader
from blip3o.data.sources.base import Record, decode
from blip3o.data.stream import Row

_LOGGER = logging.getLogger(__name__)


def training_batches(data: LightningDataModule, num_rows: int | None) -> Iterator[Row]:
    """Batches of training rows from the first one on, each an ordinary batch of the module but for the last.

    Args:
        data: the module; one that ends by itself may give fewer rows.
        num_rows: rows; with None every usable row of every source of an `ImageDataModule` once, in the order of
            training, source by source and whatever the weights.

    Raises:
        ValueError: if the number is missing where rows never end, or a source has more failures than it may.
    """
    if num_rows is None:
        if not isinstance(data, ImageDataModule):
            raise ValueError(
                f"num_rows is missing: the rows of {type(data).__name__} need not end; say how many to take, as with "
                "--num_rows 50000."
            )
        yield from _one_pass(data)
        return
    left = num_rows
    for batch in data.train_dataloader():
        batch = data.on_before_batch_transfer(batch, 0)
        count = len(batch["index"])
        yield batch if count <= left else {name: value[:left] for name, value in batch.items()}
        left -= count
        if left <= 0:
            return


def held_out_batches(data: LightningDataModule, split: str) -> Iterator[Row]:
    """Batches of the `val` or `test` rows, none where the module has none."""
    found: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    loaders = found if isinstance(found, list) else [found]
    for loader in loaders:
        yield from loader


def _one_pass(data: ImageDataModule) -> Iterator[Row]:
    records = _usable(data)
    first = 0
    while batch := list(islice(records, data.batch_size)):
        yield data.make_batch(batch, first)
        first += len(batch)


def _usable(data: ImageDataModule) -> Iterator[Record]:
    for number, entry in enumerate(data.sources):
        tally = Tally(entry.source.label, entry.limits)
        reader = SourceReader(entry.source, seed=(data.seed, number), buffer=data.shuffle_buffer)
        while True:
            row = reader.next()
            if reader.passes:
                break
            try:
                record = decode(row, entry.limits)
            except Unreadable as error:
                _LOGGER.warning("skipped a row of %s: %s", tally.source, tally.bad(row.key, str(error)))
                continue
            tally.good()
            yield record
        tally.judge()
