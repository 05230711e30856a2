"""Callbacks: held-out shapes score with a picture, and saving the parts or the model that a run trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from blip3o.checkpoints import check_model_folder, save_part
from blip3o.images import contact_sheet, save_png
from blip3o.pipeline import Blip3oPipeline, GenerationDefaults, check_settings
from blip3o.pixels import to_uint8
from blip3o.shapes import summary
from blip3o.shapes.any_world import AnyWorld, any_result_rows, get_any_world
from blip3o.training.averaging import EMA
from blip3o.training.image_score import ImageScore

StoredDtype = Literal["float32", "float16", "bfloat16"]


class ShapesScore(ImageScore):
    """Verifies the images that `validation_step` returns against the batch's captions; edits are left out.

    Logs `STAGE/score` (overall) and `STAGE/score/TAG` for validation and test, and writes a sheet of the first images
    to `samples/STAGE-STEP.png` in the trainer's log folder.

    Args:
        world: a world of shapes or of words, or the name of one.
        sheet: images on the sheet, 0 for none.
    """

    def __init__(self, world: str | AnyWorld = "shapes", sheet: int = 48) -> None:
        super().__init__(sheet)
        self.world = get_any_world(world)

    def asked(self, batch: dict[str, Any]) -> list[str | None]:
        """The captions; edits are `ShapesEditScore`'s."""
        edits = batch.get("edit", [""] * len(batch["caption"]))
        return [None if edit else caption for caption, edit in zip(batch["caption"], edits, strict=True)]

    def judged(self, images: np.ndarray, asked: list[Any], names: list[str]) -> list[dict[str, Any]]:
        """GenEval's rows."""
        return any_result_rows(images, asked, names, self.world)

    def scores(self, rows: list[dict[str, Any]], stage: str) -> dict[str, float]:
        """The mean over the tags, and each tag's."""
        found = summary(rows)
        by_tag = {f"{stage}/score/{tag}": score["mean"] for tag, score in found["tags"].items()}
        return {f"{stage}/score": found["overall"]["mean"], **by_tag}

    def drawn(self, images: np.ndarray, asked: list[Any]) -> Image.Image:
        """The images side by side."""
        return contact_sheet(images)

    def sheet_name(self, stage: str, step: int) -> str:
        """File of the sheet."""
        return f"{stage}-{step:06d}.png"


def _check_order(trainer: Trainer, export: Callback) -> None:
    """Raises a ValueError if an average takes the weights' place only after `export` has written them."""
    callbacks: list[Callback] = trainer.callbacks
    if any(isinstance(later, EMA) for later in callbacks[callbacks.index(export) :]):
        raise ValueError(
            f"callbacks lists EMA after {type(export).__name__}; put it before, so that the average is kept."
        )


class WriteImages(Callback):
    """Writes the images that `predict_step` returns as `INDEX.png`.

    Args:
        folder: where.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, caption, image in zip(batch["index"].tolist(), batch["caption"], to_uint8(outputs), strict=True):
            save_png(Image.fromarray(image), self.folder / f"{index:05d}.png", {"prompt": caption})


class ExportParts(Callback):
    """Writes parts of the trained module as safetensors when `fit` ends.

    Args:
        parts: file to write by the attribute path of the part, such as
            `{"codec": "runs/shapes/codec/codec.safetensors"}`.

    Raises:
        ValueError: if a file is a folder, or (when the run starts) the module lacks a part.
    """

    def __init__(self, parts: dict[str, str]) -> None:
        for file in parts.values():
            if Path(file).is_dir():
                raise ValueError(f"parts names {file}, which is a folder; name a file to write.")
        self.parts = parts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the parts exist and that an average of the weights is in place before they are written."""
        modules = dict(pl_module.named_modules())
        if missing := sorted(self.parts.keys() - modules.keys()):
            known = [name for name, _ in pl_module.named_children()]
            raise ValueError(f"parts names {missing}, which the module lacks; it holds {known}.")
        _check_order(trainer, self)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files."""
        for name, file in self.parts.items():
            path = Path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_part(pl_module.get_submodule(name), path)


class ExportModel(Callback):
    """Writes the trained model as a folder that `Blip3oPipeline.from_pretrained` reads, when `fit` ends.

    Args:
        folder: where.
        dtype: of the stored tensors; their own when None.
        defaults: arguments of generation that are stored with the model; when None those of the module's validation
            (`generation_defaults`), or else the published ones.

    Raises:
        ValueError: if `folder` holds something else than a model, or a default is out of range.
    """

    def __init__(
        self, folder: str, dtype: StoredDtype | None = None, defaults: GenerationDefaults | None = None
    ) -> None:
        check_model_folder(Path(folder))
        self.folder = folder
        self.dtype = getattr(torch, dtype) if dtype else None
        self.defaults = defaults
        if defaults is not None:
            check_settings(defaults)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that an average of the weights is in place before the model is written."""
        _check_order(trainer, self)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder."""
        own = getattr(pl_module, "generation_defaults", None)
        defaults = self.defaults or own or GenerationDefaults()
        Blip3oPipeline(pl_module.model, defaults).save_pretrained(self.folder, dtype=self.dtype)
