"""Mixed training runs and is scored: edits by one callback, captions by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from blip3o.data.editing import ShapesEditDataModule
from blip3o.data.shapes import ShapesDataModule
from blip3o.training.base import Optimization
from blip3o.training.callbacks import ShapesScore
from blip3o.training.edit_score import ShapesEditScore
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from blip3o.training.quiet import quiet
from tests.tiny_edits import tiny_edit_model

TASKS = {"text": 1.0, "edit": 1.0, "reconstruct": 0.5}


def data(**arguments: Any) -> ShapesEditDataModule:
    values = {"world": "shapes-mini", "batch_size": 4, "num_val": 3, "num_val_edits": 10, "num_prompts": 1}
    return ShapesEditDataModule(**{**values, "tasks": TASKS, **arguments})  # type: ignore[arg-type]


class Copyist(LightningModule):
    """Gives the target of every row, or the picture that is to be edited.

    Args:
        edits: whether it edits.
    """

    def __init__(self, *, edits: bool) -> None:
        super().__init__()
        self.edits = edits

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images: Tensor = batch["image"].clone()
        if not self.edits:
            given = batch["num_references"] > 0
            images[given] = batch["references"][given, 0]
        return images

    test_step = validation_step


def validated(module: LightningModule, folder: Path, source: Any, *callbacks: Callback) -> dict[str, float]:
    with quiet(everything=True):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            callbacks=list(callbacks),
        )
        (scores,) = trainer.validate(module, datamodule=source, verbose=False)
    return dict(scores)


def both() -> tuple[Callback, Callback]:
    return ShapesScore("shapes-mini"), ShapesEditScore("shapes-mini", sheet=3)


@pytest.mark.parametrize("edits", [True, False])
def test_edits_are_scored_beside_captions(tmp_path: Path, edits: bool) -> None:
    scores = validated(Copyist(edits=edits), tmp_path, data(), *both())
    assert scores["val/score"] == 1
    assert scores["val/edit/success"] == scores["val/edit/both"] == float(edits)
    assert (scores["val/edit/consistency"], scores["val/edit/mae"]) == (1, 0)
    kinds = ("recolor", "remove", "add", "replace", "background")
    assert [scores[f"val/edit/success/{kind}"] for kind in kinds] == [float(edits)] * 5
    with Image.open(tmp_path / "samples/val-edit-000000.png") as sheet:
        assert sheet.width > 4 * 64 and sheet.height > 3 * 64
    assert (tmp_path / "samples/val-000000.png").is_file()


def test_a_validation_of_one_task_is_scored_alone(tmp_path: Path) -> None:
    scores = validated(Copyist(edits=True), tmp_path, data(tasks={"edit": 1.0}), *both())
    assert scores["val/edit/success"] == 1 and "val/score" not in scores
    scores = validated(Copyist(edits=True), tmp_path, data(tasks={"text": 1.0}), *both())
    assert scores["val/score"] == 1 and "val/edit/success" not in scores


def test_data_without_edits_and_modules_without_images_are_refused(tmp_path: Path) -> None:
    plain = ShapesDataModule(world="shapes-mini", num_val=2, num_prompts=1)

    class Silent(Copyist):
        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return torch.zeros(())

    class Plain(Copyist):
        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            images: Tensor = batch["image"]
            return images

    with pytest.raises(ValueError, match=r"the data holds no edits to score; use blip3o\.data\.editing"):
        validated(Plain(edits=True), tmp_path, plain, ShapesEditScore("shapes-mini"))
    with pytest.raises(ValueError, match="Silent gives no images in validation; leave ShapesEditScore out"):
        validated(Silent(edits=True), tmp_path, data(), ShapesEditScore("shapes-mini"))


def test_joint_training_learns_from_mixed_rows_and_validates(tmp_path: Path) -> None:
    module = JointModule(
        tiny_edit_model(), Optimization(warmup_steps=1, lr=1e-2), num_inference_steps=1, supervise="image"
    )
    steps = fit_steps(module, data(batch_size=8), num_steps=4)
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in steps)
    assert steps[-1]["cross_entropy"] < steps[0]["cross_entropy"]
    scores = validated(module, tmp_path, data(), *both())
    assert {"val/cross_entropy", "val/score", "val/edit/success", "val/edit/mae"} <= scores.keys()
    assert 0 < scores["val/edit/mae"] <= 1
