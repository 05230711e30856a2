"""Training inside a script or a notebook: no files, no log folder, every step's metrics returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer

from blip3o.training.quiet import quiet

Metrics = dict[str, float]


class History(Callback):
    """Keeps the training metrics of every step in `steps`.

    Args:
        on_step: called after each step with its number, from 1, and its metrics.
    """

    def __init__(self, on_step: Callable[[int, Metrics], None] | None = None) -> None:
        self.steps: list[Metrics] = []
        self.on_step = on_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps what the module logged under `train/`, without that prefix."""
        logged = trainer.callback_metrics.items()
        metrics = {name.removeprefix("train/"): float(v) for name, v in logged if name.startswith("train/")}
        self.steps.append(metrics)
        if self.on_step is not None:
            self.on_step(len(self.steps), metrics)


def fit_steps(
    module: LightningModule,
    data: LightningDataModule,
    *,
    num_steps: int,
    accelerator: str = "cpu",
    gradient_clip_val: float = 1.0,
    on_step: Callable[[int, Metrics], None] | None = None,
) -> list[Metrics]:
    """Trains for `num_steps` steps, without validation.

    Args:
        module: what to train, in place.
        data: its batches.
        num_steps: optimizer steps, at least 1.
        accelerator: Lightning's name of the device.
        gradient_clip_val: largest norm of the gradient.
        on_step: called after each step with its number, from 1, and its metrics.

    Returns:
        The metrics of each step.

    Raises:
        ValueError: if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps ({num_steps}) must be at least 1.")
    history = History(on_step)
    with quiet(everything=True):
        trainer = Trainer(
            max_steps=num_steps,
            accelerator=accelerator,
            devices=1,
            gradient_clip_val=gradient_clip_val,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[history],
        )
        trainer.fit(module, datamodule=data)
    return history.steps
