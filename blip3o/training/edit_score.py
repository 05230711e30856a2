"""Callback: the score of held-out edits of the shapes world, with a sheet of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from blip3o.images import contact_sheet
from blip3o.pixels import to_uint8
from blip3o.shapes import ShapesEdit, World, edit_panels, edit_rows, edit_summary, get_world, read_edit, verify_edits
from blip3o.training.callbacks import from_all_processes


class ShapesEditScore(Callback):
    """Verifies the edits that `validation_step` returns; rows without references are left to `ShapesScore`.

    Logs `STAGE/edit/success`, `STAGE/edit/consistency`, `STAGE/edit/both`, `STAGE/edit/mae`, and the first for each
    kind as `STAGE/edit/success/KIND`, for validation and test; writes a sheet with source, result, difference map and
    what was expected to `samples/STAGE-edit-STEP.png` in the trainer's log folder.

    Args:
        world: a world, or the name of one.
        sheet: edits on the sheet, 0 for none.
    """

    def __init__(self, world: str | World = "shapes", sheet: int = 20) -> None:
        self.world = get_world(world)
        self.sheet = sheet
        self._images: list[np.ndarray] = []
        self._edits: list[ShapesEdit] = []
        self._indices: list[int] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._images, self._edits, self._indices = [], [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's edits; a ValueError where the module gives no images or the data no edits."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 4:
            raise ValueError(f"{type(pl_module).__name__} gives no images in validation; leave ShapesEditScore out.")
        if "edit" not in batch:
            raise ValueError(
                "the data holds no edits to score; use blip3o.data.editing.ShapesEditDataModule, or leave "
                "ShapesEditScore out."
            )
        rows = [row for row, edit in enumerate(batch["edit"]) if edit]
        self._images.extend(to_uint8(outputs[rows]))
        self._edits.extend(read_edit(json.loads(batch["edit"][row])) for row in rows)
        self._indices.extend(batch["index"][rows].tolist())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores them and writes the sheet."""
        self._report(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores them and writes the sheet."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        verdicts = verify_edits(self._images, self._edits, self.world)
        own = edit_rows(verdicts, self._edits, [f"{index:05d}" for index in self._indices])
        # Lightning's sampler gives some rows to two processes where they do not divide evenly; they count once.
        rows = {row["filename"]: row for rows in from_all_processes(own) for row in rows}
        if not rows:
            return
        scores = edit_summary(list(rows.values()))
        # Every process has the rows of all and logs the same numbers.
        for name in ("success", "consistency", "both", "mae"):
            pl_module.log(f"{stage}/edit/{name}", scores[name]["mean"], prog_bar=name == "success")
        for kind, score in scores["kinds"].items():
            pl_module.log(f"{stage}/edit/success/{kind}", score["success"]["mean"])
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"  # log_dir is asked of all processes
        if self.sheet and self._edits and trainer.is_global_zero:
            shown = slice(self.sheet)
            panels, labels, columns = edit_panels(self._images[shown], self._edits[shown], verdicts[shown], self.world)
            folder.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet(panels, labels, columns=columns, scale=2)
            sheet.save(folder / f"{stage}-edit-{trainer.global_step:06d}.png")
