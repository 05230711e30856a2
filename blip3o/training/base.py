"""What every training module shares: optimizer, schedule, and one step for validation and test."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, get_args

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from blip3o.training.optimization import MuonDtype, OptimizerName, Schedule, build_optimizer, build_schedule
from blip3o.training.randomness import stable_seed


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule of a run; the number of steps is the trainer's `max_steps`.

    Attributes:
        name: `adamw`, or `muon` (Muon for hidden matrices with AdamW for the rest).
        lr: peak learning rate.
        adamw_lr: peak learning rate of Muon's AdamW group; `lr` when None.
        muon_dtype: precision of Muon's iterations; `bfloat16` saves time where the processor has it.
        weight_decay: decoupled weight decay.
        betas: AdamW's decay rates of its moments, each in [0, 1).
        schedule: shape of the decay.
        warmup_steps: steps of linear warm-up.
        min_ratio: share of the learning rate that is left at the end.
        decay_fraction: share of the run, at its end, over which the learning rate decays.

    Raises:
        ValueError: if a name is unknown or a number out of range.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    adamw_lr: float | None = None
    muon_dtype: MuonDtype = "float32"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    min_ratio: float = 0.0
    decay_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        for name, choice in (("name", OptimizerName), ("schedule", Schedule), ("muon_dtype", MuonDtype)):
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} ({getattr(self, name)!r}) must be one of {get_args(choice)}.")
        for name in ("lr", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas ({self.betas}) must lie in [0, 1).")
        for name in ("min_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1].")


class TrainingModule(LightningModule):
    """A LightningModule whose optimizer is described by an `Optimization`.

    Args:
        optimization: optimizer and schedule.
        seed: of what the run draws.
    """

    def __init__(self, optimization: Optimization, seed: int = 0) -> None:
        super().__init__()
        self.optimization = optimization
        self.seed = seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds layers that draw on their own (dropout) by batch and process, so that a resumed run repeats them."""
        torch.manual_seed(stable_seed(self.seed, batch_idx, f"layers of process {self.global_rank}"))

    @abstractmethod
    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Logs losses as `STAGE/NAME` and returns images (B, 3, H, W) in [-1, 1] for callbacks to score."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """`evaluation_step` of `fit` and `validate`."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """`evaluation_step` of `test`."""
        return self.evaluation_step(batch, "test")

    def build_optimizer(self) -> Optimizer:
        """The optimizer over the trainable parameters."""
        o = self.optimization
        return build_optimizer(
            self.named_parameters(),
            name=o.name,
            lr=o.lr,
            adamw_lr=o.adamw_lr,
            muon_dtype=o.muon_dtype,
            weight_decay=o.weight_decay,
            betas=o.betas,
        )

    def configure_optimizers(self) -> Any:
        """Optimizer over the trainable parameters, schedule stepped every optimizer step.

        Raises:
            ValueError: if the trainer has no `max_steps`, without which the stream of rows would never end.
        """
        o = self.optimization
        if self.trainer.max_steps < 1:
            raise ValueError(f"max_steps ({self.trainer.max_steps}) must be at least 1; set trainer.max_steps.")
        optimizer = self.build_optimizer()
        scheduler = build_schedule(
            optimizer,
            name=o.schedule,
            warmup_steps=o.warmup_steps,
            total_steps=self.trainer.max_steps,
            min_ratio=o.min_ratio,
            decay_fraction=o.decay_fraction,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
