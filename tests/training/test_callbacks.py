"""Callbacks check what they will need before a run starts, and an export holds the moving average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file

from blip3o.data.shapes import ShapesDataModule
from blip3o.pipeline import GenerationDefaults
from blip3o.training.averaging import EMA
from blip3o.training.base import Optimization
from blip3o.training.callbacks import ExportModel, ExportParts
from blip3o.training.joint import JointModule
from blip3o.training.quiet import quiet
from tests.tiny import tiny_model


def fit(callbacks: list[Callback], module: JointModule | None = None, **arguments: object) -> JointModule:
    module = module or JointModule(tiny_model(), Optimization(lr=1e-2, warmup_steps=1))
    data = ShapesDataModule(world="shapes-mini", batch_size=2, num_val=1, num_prompts=1)
    values = {"max_steps": 3, "logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **arguments}
    with quiet(everything=True):
        trainer = Trainer(accelerator="cpu", enable_progress_bar=False, callbacks=callbacks, **values)  # type: ignore[arg-type]
        trainer.fit(module, datamodule=data)
    return module


class KeepLast(Callback):
    """Keeps a weight as it was after each optimizer step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: JointModule, *args: object) -> None:  # type: ignore[override]
        self.weights.append(next(pl_module.model.bridge.parameters()).detach().clone())


def test_the_exported_part_is_the_moving_average(tmp_path: Path) -> None:
    path, kept = tmp_path / "bridge.safetensors", KeepLast()
    start = next(tiny_model().bridge.parameters()).detach().clone()
    module = fit([kept, EMA(decay=0.5), ExportParts({"model.bridge": str(path)})])
    average = start
    for step, weight in enumerate(kept.weights, start=1):
        decay = min(0.5, step / (step + 10))
        average = decay * average + (1 - decay) * weight
    name = next(name for name, _ in module.model.bridge.named_parameters())
    torch.testing.assert_close(load_file(path)[name], average)
    assert not torch.equal(load_file(path)[name], kept.weights[-1])


@pytest.mark.parametrize("kind", ["parts", "model"])
def test_an_export_before_the_average_is_refused(tmp_path: Path, kind: str) -> None:
    export = ExportParts({"model": str(tmp_path / "a")}) if kind == "parts" else ExportModel(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="callbacks lists EMA after Export"):
        fit([export, EMA()])


def test_exports_are_refused_before_a_run_and_not_after_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts names \['codec'\], which the module lacks; it holds \['model'\]"):
        fit([ExportParts({"codec": str(tmp_path / "a")})])
    with pytest.raises(ValueError, match="is a folder; name a file"):
        ExportParts({"codec": str(tmp_path)})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which is no model's"):
        ExportModel(str(tmp_path))
    with pytest.raises(ValueError, match=r"num_inference_steps \(0\)"):
        ExportModel(str(tmp_path / "new"), defaults=GenerationDefaults(num_inference_steps=0))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max_steps": -1, "max_epochs": 1}, r"max_steps \(-1\) must be at least 1; set trainer\.max_steps"),
        ({"limit_train_batches": 2}, r"limit_train_batches \(2\) would start the stream of rows anew"),
    ],
)
def test_runs_that_would_never_end_or_repeat_rows_are_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit([], **arguments)
