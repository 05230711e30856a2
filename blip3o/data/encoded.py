"""Rows whose pictures were encoded before, as a LightningDataModule: no encoder runs while a model trains on them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Subset

from blip3o.data.shards import EncodedRows, Split, read_index
from blip3o.data.stream import Row, RowStream, refuse_limited_batches
from blip3o.shapes import World, get_world

IN_MEMORY_BYTES = 2 * 2**30
"""Ids and latents of training that `in_memory="auto"` holds in every process: 2 GiB."""


class EncodedDataModule(LightningDataModule):
    """What `blip3o data encode` wrote: captions with image token ids and normalised latents, without pictures.

    Training goes over the rows again and again, each time in another order that is pure in (seed, epoch). Position p
    of the run, counted over all epochs and processes, is the row's `index`, so that noise, timesteps and dropped
    conditions never repeat; with `shuffle: false` the first epoch of a run on one process is that of the data which
    was encoded. Validation and test rows are those of that data, with their pictures.

    Args:
        folder: what `blip3o data encode` wrote, relative to the working directory.
        batch_size: rows a batch on one process.
        seed: of the order.
        shuffle: whether each epoch has an order of its own; else rows come as they were encoded.
        in_memory: whether to hold ids and latents of training in memory; with `auto` where they take at most 2 GiB.
        num_val: validation and test rows, the first ones; all when None.
        num_workers: processes that read; 0 reads in the training process.

    Raises:
        ValueError: if the folder is not encoded to its end, or a number is out of range.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        batch_size: int = 48,
        seed: int = 0,
        shuffle: bool = True,
        in_memory: bool | Literal["auto"] = "auto",
        num_val: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.index = read_index(folder)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("num_val", 1 if num_val is None else num_val, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        if num_val is not None and num_val > self.index.num_rows["val"]:
            raise ValueError(
                f"num_val ({num_val}) is more than the {self.index.num_rows['val']} validation rows of folder "
                f"({folder}); lower it, or encode data with more of them."
            )
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_val = num_val
        self.num_workers = num_workers
        fits = self.index.nbytes("train") <= IN_MEMORY_BYTES
        self.in_memory = fits if in_memory == "auto" else in_memory
        self.prompts = self.index.prompts
        self._rows: EncodedRows | None = None
        self._first_batch = 0
        self._resumed_rows: int | None = None

    @property
    def world(self) -> World | None:
        """The shapes world that the rows come from, where it is one."""
        return None if self.index.world is None else get_world(self.index.world)

    def setup(self, stage: str) -> None:
        """Checks that the model's encoders are those that the rows were encoded with."""
        if self.trainer is not None and stage != "predict":
            self.check_module(self.trainer.lightning_module)

    def check_module(self, module: LightningModule) -> None:
        """Raises a ValueError if a module can not train on encoded rows, or was not encoded for."""
        check = getattr(module, "check_encoders", None)
        if check is None:
            raise ValueError(
                f"{type(module).__name__} trains on pictures, and EncodedDataModule has none for training; name the "
                "data module that was encoded, or train a JointModule."
            )
        check(self.index)

    def train_dataloader(self) -> DataLoader[Row]:
        """Endless; continues where a resumed run stopped.

        Raises:
            ValueError: if a shard is damaged, the trainer limits the batches of an epoch, or the run that is resumed
                had another number of rows.
        """
        trainer = self.trainer
        refuse_limited_batches(trainer)
        if self._rows is None:
            self._rows = EncodedRows(self.index, "train", in_memory=self.in_memory)
        if self._resumed_rows not in (None, len(self._rows)):
            raise ValueError(
                f"folder ({self.index.folder}) has {len(self._rows)} training rows, but the run to resume had "
                f"{self._resumed_rows}; their order is another. Start anew, or name the folder of that run."
            )
        stream = RowStream(
            self._make_row,
            batch_size=self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            first_batch=self._first_batch,
        )
        return DataLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers)

    def _make_row(self, position: int) -> Row:
        """The row at a position of the run."""
        assert self._rows is not None, "made before the stream"
        epoch, number = divmod(position, len(self._rows))
        if self.shuffle:
            number = int(_order(self.seed, epoch, len(self._rows))[number])
        return {**self._rows[number], "index": position}

    def val_dataloader(self) -> DataLoader[Row] | list[Any]:
        """The validation rows with their pictures, or none."""
        return self._held_out("val")

    def test_dataloader(self) -> DataLoader[Row] | list[Any]:
        """The test rows with their pictures, or none."""
        return self._held_out("test")

    def _held_out(self, split: Split) -> DataLoader[Row] | list[Any]:
        rows = EncodedRows(self.index, split)
        count = len(rows) if self.num_val is None else min(self.num_val, len(rows))
        return DataLoader(Subset(rows, range(count)), batch_size=self.batch_size) if count else []

    def predict_dataloader(self) -> DataLoader[Row]:
        """The prompts as rows of `caption` and `index`."""
        rows = [{"index": index, "caption": caption} for index, caption in enumerate(self.prompts)]
        return DataLoader(rows, batch_size=self.batch_size)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Batches seen, so that a resumed run goes on with the next one."""
        trainer = self.trainer
        seen = trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0
        return {"batches_seen": seen, "num_rows": self.index.num_rows["train"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches that `state_dict` has seen."""
        self._first_batch = int(state_dict["batches_seen"])
        self._resumed_rows = int(state_dict["num_rows"])


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The order of the rows in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
