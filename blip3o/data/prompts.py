"""Prompts with what is known about them, for reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from blip3o.data.stream import Row, RowStream, refuse_limited_batches


def read_prompts(file: str | Path, prompt_key: str = "prompt") -> list[tuple[str, dict[str, Any]]]:
    """Prompts and their metadata.

    Args:
        file: a text file with a prompt a line; or JSON Lines (`.jsonl`), whose whole objects are the metadata, such
            as GenEval's `evaluation_metadata.jsonl`. Blank lines are left out.
        prompt_key: field of a JSON object that holds the prompt.

    Raises:
        ValueError: if the file can not be read, holds no prompt, or a line is no object with a prompt.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at the other separators that JSON may hold
    except (OSError, UnicodeError) as error:
        raise ValueError(f"file ({path}) can not be read as text: {error}; name a text or .jsonl file.") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"file ({path}) holds no prompt; write one a line.")
    if path.suffix != ".jsonl":
        return [(line, {}) for _, line in numbered]
    prompts = []
    for number, line in numbered:
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"file ({path}) line {number} is no JSON: {error}; mend it.") from error
        prompt = fields.get(prompt_key) if isinstance(fields, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            told = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"file ({path}) line {number} has no text in {prompt_key!r} ({told}); name the key.")
        prompts.append((prompt.strip(), fields))
    return prompts


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def make_prompt(index: int, *, prompts: Sequence[tuple[str, dict[str, Any]]], seed: int) -> Row:
    """Row `index` of endless passes over the prompts, each pass in an order of its own."""
    epoch, place = divmod(index, len(prompts))
    prompt, metadata = prompts[_order(seed, epoch, len(prompts))[place]]
    return {"index": index, "prompt": prompt, "metadata": metadata}


def collate_prompts(rows: Sequence[Row]) -> Row:
    """A batch of prompts: `index` (B,) int64, and lists of B for everything else."""
    batch: Row = {name: [row[name] for row in rows] for name in rows[0]}
    return batch | {"index": torch.tensor(batch["index"])}


class PromptDataModule(LightningDataModule):
    """Batches `{"index": (B,) int64, "prompt": list[str], "metadata": list[dict]}` from a file.

    Training rows never end; each pass over the file has an order of its own, pure in the seed. Row b of the run is
    the same however many processes and workers there are, and a resumed run goes on with the next batch. Building one
    touches no file; that happens when a run is set up.

    Args:
        file: text file with a prompt a line, or JSON Lines with `prompt_key` and any metadata.
        batch_size: prompts a batch on one process.
        seed: of the order.
        prompt_key: field of the prompt in JSON Lines.
        val_file: prompts of validation, test and prediction, in the order of the file; none when None.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        file: str,
        batch_size: int = 16,
        seed: int = 0,
        prompt_key: str = "prompt",
        val_file: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        self.file = file
        self.prompt_key = prompt_key
        self.val_file = val_file
        self.batch_size = batch_size
        self.seed = seed
        self._first_batch = 0

    @cached_property
    def prompts(self) -> list[tuple[str, dict[str, Any]]]:
        """Prompts of training, with their metadata."""
        return read_prompts(self.file, self.prompt_key)

    @cached_property
    def val_prompts(self) -> list[tuple[str, dict[str, Any]]]:
        """Prompts of validation, test and prediction, with their metadata."""
        return [] if self.val_file is None else read_prompts(self.val_file, self.prompt_key)

    def setup(self, stage: str) -> None:
        """Reads the files, so that what is wrong with them stops a run before it starts.

        Raises:
            ValueError: if a file can not be read or holds no prompts.
        """
        _ = self.prompts, self.val_prompts

    def train_dataloader(self) -> DataLoader[Row]:
        """Endless; continues where a resumed run stopped.

        Raises:
            ValueError: if the trainer limits the batches of an epoch.
        """
        trainer = self.trainer
        refuse_limited_batches(trainer)
        stream = RowStream(
            partial(make_prompt, prompts=self.prompts, seed=self.seed),
            batch_size=self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            first_batch=self._first_batch,
        )
        return DataLoader(stream, batch_size=self.batch_size, collate_fn=collate_prompts)

    def val_dataloader(self) -> DataLoader[Row] | list[Any]:
        """The prompts of `val_file`, none without it."""
        rows = [{"index": i, "prompt": p, "metadata": m} for i, (p, m) in enumerate(self.val_prompts)]
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=collate_prompts) if rows else []  # type: ignore[arg-type]

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Batches seen, so that a resumed run goes on with the next one."""
        trainer = self.trainer
        seen = trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0
        return {"batches_seen": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches that `state_dict` has seen."""
        self._first_batch = int(state_dict["batches_seen"])
