"""Captioned pictures and edits from files, as a LightningDataModule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from blip3o.data.failures import Failure
from blip3o.data.mixture import BatchStream, Mixture, Weighted
from blip3o.data.sources.base import Record
from blip3o.data.stream import Row, refuse_limited_batches
from blip3o.pixels import cropped, squeezed

_LOGGER = logging.getLogger(__name__)
_KEPT = 1000


@dataclass(frozen=True)
class BatchMaker:
    """Turns records into a batch of tensors.

    Attributes:
        image_size: side H of `image` and `references`, the central squares of the pictures.
        token_image_size: side h of `token_image` and `token_references`, the whole pictures squeezed into a square,
            as SigLIP's processor gives them; none are made when None.
    """

    image_size: int
    token_image_size: int | None = None

    def __call__(self, records: Sequence[Record], first_index: int) -> Row:
        """A batch of B records.

        Returns:
            `index` (B,) int64; `key` and `caption`, lists of strings; `image` (B, 3, H, W) in [-1, 1]; `token_image`
            (B, 3, h, w); `num_references` (B,) int64. Where a row has references there are also `references`
            (B, R, 3, H, W) and `token_references` (B, R, 3, h, w) for the largest number R; a row's own come first,
            and zeros fill it up.
        """
        batch: Row = {
            "index": torch.arange(first_index, first_index + len(records)),
            "key": [record.key for record in records],
            "caption": [record.caption for record in records],
            "image": torch.stack([cropped(record.image, self.image_size) for record in records]),
            "num_references": torch.tensor([len(record.references) for record in records]),
        }
        small = self.token_image_size
        if small is not None:
            batch["token_image"] = torch.stack([squeezed(record.image, small) for record in records])
        if most := int(batch["num_references"].max()):
            batch["references"] = _padded(records, most, cropped, self.image_size)
            if small is not None:
                batch["token_references"] = _padded(records, most, squeezed, small)
        return batch


def _padded(records: Sequence[Record], most: int, view: Any, side: int) -> Tensor:
    """The references of every row as `view` gives them, zeros behind them: (B, most, 3, side, side)."""
    padded = torch.zeros(len(records), most, 3, side, side)
    for row, record in zip(padded, records, strict=True):
        for place, reference in zip(row, record.references, strict=False):
            place.copy_(view(reference, side))
    return padded


class ImageDataModule(LightningDataModule):
    """Pictures with captions, and edits, from a weighted mixture of sources.

    A batch may hold rows of text to image and edits with one to four references; `num_references` tells them apart.
    The order is pure in the seed and the number of readers (processes times workers), no reader shares a row of a
    pass with another, and a resumed run goes on with the very next row. Rows that can not be used are logged, kept
    in `failures` with their keys and reasons, and never replaced by anything but the next row of their source.

    Args:
        sources: the mixture; each entry has a `source`, a `weight` and `limits`.
        image_size: side of the pictures for the diffusion head.
        token_image_size: side of those for the image tokenizer, where it takes another size than the head renders.
        batch_size: rows a batch on one process.
        seed: of the order.
        shuffle_buffer: rows of a source that each reader shuffles together; they are held undecoded.
        num_workers: processes that read; 0 reads in the training process.
        val_sources: sources of the validation rows, which are their first ones; no validation when None.
        num_val: validation rows.
        prompts: captions that `blip3o predict` draws.

    Raises:
        ValueError: if there is no source or a number is out of range.
    """

    def __init__(
        self,
        *,
        sources: list[Weighted],
        image_size: int,
        token_image_size: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        num_workers: int = 0,
        val_sources: list[Weighted] | None = None,
        num_val: int = 16,
        prompts: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("sources", sources), ("val_sources", val_sources)):
            if given is not None and not given:
                raise ValueError(f"{name} ([]) must hold at least one source with its weight.")
        for name, value, least in (
            ("image_size", image_size, 1),
            ("token_image_size", 1 if token_image_size is None else token_image_size, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("shuffle_buffer", shuffle_buffer, 1),
            ("num_workers", num_workers, 0),
            ("num_val", num_val, 1),
        ):
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        self.sources = sources
        self.make_batch = BatchMaker(image_size, token_image_size)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.val_sources = val_sources
        self.num_val = num_val
        self.prompts = prompts or []
        self.failures: list[Failure] = []
        self.num_failures = 0
        self._batches_seen = 0
        self._states: dict[int, dict[int, dict[str, Any]]] = {}
        self._resumed: tuple[int, int] | None = None
        self._validation: list[Record] | None = None

    def train_dataloader(self) -> DataLoader[Row]:
        """Endless; continues where a resumed run stopped.

        Raises:
            ValueError: if a source has no file, the trainer limits the batches of an epoch, or the run that is
                resumed had another number of readers.
        """
        trainer = self.trainer
        refuse_limited_batches(trainer)
        for entry in self.sources:
            entry.source.shards()
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self._check_readers(world_size)
        stream = BatchStream(
            self.make_batch,
            self.sources,
            seed=self.seed,
            batch_size=self.batch_size,
            buffer=self.shuffle_buffer,
            rank=rank,
            world_size=world_size,
            first_batch=self._batches_seen,
            states=dict(self._states.get(rank, {})),
        )
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Row] | list[Any]:
        """The first `num_val` usable rows of `val_sources`, or none; where there are fewer they come again."""
        if self.val_sources is None:
            return []
        if self._validation is None:
            mixture = Mixture(self.val_sources, seed=self.seed, buffer=1)
            self._validation = [mixture.next() for _ in range(self.num_val)]
            self._note(mixture.news)
        rows = list(enumerate(self._validation))
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=self._held_out)  # type: ignore[arg-type]

    test_dataloader = val_dataloader

    def _held_out(self, rows: Sequence[tuple[int, Record]]) -> Row:
        batch = self.make_batch([record for _, record in rows], 0)
        return batch | {"index": torch.tensor([index for index, _ in rows])}

    def predict_dataloader(self) -> DataLoader[Row]:
        """The prompts as rows of `caption` and `index`."""
        rows = [{"index": index, "caption": caption} for index, caption in enumerate(self.prompts)]
        return DataLoader(rows, batch_size=self.batch_size)  # type: ignore[arg-type]

    def on_before_batch_transfer(self, batch: Row, dataloader_idx: int) -> Row:
        """Keeps where the batch's reader is, so that the state is that of the rows trained on, not of those fetched."""
        progress = batch.pop("progress", None)
        if progress is not None:
            rank = self.trainer.global_rank if self.trainer else 0
            self._batches_seen = progress["batch"] + 1
            self._states.setdefault(rank, {})[progress["reader"]] = progress["state"]
            self._note(progress["failures"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Batches seen, and the place of every reader of every process; all processes must ask for it together."""
        rank = self.trainer.global_rank if self.trainer else 0
        own = {rank: self._states.get(rank, {})}
        several: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            several = [None] * dist.get_world_size()
            dist.all_gather_object(several, own)
        return {
            "batches_seen": self._batches_seen,
            "num_workers": self.num_workers,
            "readers": {rank: states for one in several for rank, states in one.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches that `state_dict` has seen."""
        self._batches_seen = int(state_dict["batches_seen"])
        self._states = dict(state_dict["readers"])
        self._resumed = (len(self._states), int(state_dict["num_workers"]))

    def _check_readers(self, world_size: int) -> None:
        """Refuses to resume with other readers, whose shares of the rows would be others."""
        if self._resumed not in (None, (world_size, self.num_workers)):
            raise ValueError(
                f"the run to resume read with (processes, num_workers) = {self._resumed}, this one reads with "
                f"{(world_size, self.num_workers)}; resume with as many, since they share the rows."
            )

    def _note(self, failures: Sequence[Failure]) -> None:
        """Logs and keeps failures, the first thousand of a run."""
        for failure in failures:
            _LOGGER.warning("skipped a row of %s: %s", failure.source, failure)
        self.num_failures += len(failures)
        self.failures = [*self.failures, *failures][:_KEPT]
