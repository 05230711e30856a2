"""What callbacks share that judge the images of validation and test."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from blip3o.pixels import to_uint8


class ImageScore(Callback):
    """Keeps the images that `validation_step` or `test_step` returns, judges them at the end, logs and draws.

    Subclasses say what of a batch is theirs, how it is judged and how it is drawn.

    Args:
        sheet: images on the sheet, 0 for none.
    """

    def __init__(self, sheet: int) -> None:
        self.sheet = sheet
        self._images: list[np.ndarray] = []
        self._asked: list[Any] = []
        self._names: list[str] = []

    @abstractmethod
    def asked(self, batch: dict[str, Any]) -> list[Any]:
        """For each row of a batch what was asked for, None where it is not this callback's to judge."""

    @abstractmethod
    def judged(self, images: np.ndarray, asked: list[Any], names: list[str]) -> list[dict[str, Any]]:
        """A row for each image (n, H, W, 3), with its name as `filename`."""

    @abstractmethod
    def scores(self, rows: list[dict[str, Any]], stage: str) -> dict[str, float]:
        """What is logged, by name, the first also in the progress bar."""

    @abstractmethod
    def drawn(self, images: np.ndarray, asked: list[Any]) -> Image.Image:
        """The sheet of some images."""

    @abstractmethod
    def sheet_name(self, stage: str, step: int) -> str:
        """File of the sheet."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._images, self._asked, self._names = [], [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what is its own of a batch; a ValueError where the module gives no images."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 4:
            raise ValueError(
                f"{type(pl_module).__name__} gives no images in validation; leave {type(self).__name__} out."
            )
        asked = self.asked(batch)
        rows = [row for row, one in enumerate(asked) if one is not None]
        self._images.extend(to_uint8(outputs[rows]))
        self._asked.extend(asked[row] for row in rows)
        self._names.extend(f"{index:05d}" for index in batch["index"][rows].tolist())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores them and writes the sheet."""
        self._report(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores them and writes the sheet."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        images = np.stack(self._images) if self._images else np.empty((0, 1, 1, 3), dtype=np.uint8)
        own = self.judged(images, self._asked, self._names) if self._images else []
        # Lightning's sampler gives some rows to two processes where they do not divide evenly; they count once.
        rows = {row["filename"]: row for rows in _from_all_processes(own) for row in rows}
        if not rows:
            return
        # Every process has the rows of all and logs the same numbers.
        for number, (name, value) in enumerate(self.scores(list(rows.values()), stage).items()):
            pl_module.log(name, value, prog_bar=number == 0)
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"  # log_dir is asked of all processes
        if self.sheet and self._images and trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            sheet = self.drawn(images[: self.sheet], self._asked[: self.sheet])
            sheet.save(folder / self.sheet_name(stage, trainer.global_step))


def _from_all_processes(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
