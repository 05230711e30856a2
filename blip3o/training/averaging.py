"""Exponential moving average of the weights that train."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class EMA(Callback):
    """Keeps a moving average of the trainable parameters and puts it in their place where it counts.

    Validation, test and everything after training see the average; checkpoints hold both. Frozen parameters are not
    copied, so that a large frozen part costs no memory. Callbacks that export the result come after it in the list.

    Args:
        decay: share of the old average in the new one, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay ({decay}) must lie in [0, 1); 0 keeps the last weights.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._step = 0

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts at the weights, or goes on with the average of the checkpoint."""
        own = _trainable(pl_module)
        if not self._average:
            self._average = {name: p.detach().clone() for name, p in own.items()}
        self._average = {name: self._average[name].to(p.device) for name, p in own.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average after every optimizer step; the first weights of a run weigh less and less."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, self._step / (self._step + 10))
        for name, parameter in _trainable(pl_module).items():
            self._average[name].lerp_(parameter, 1 - decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The average takes the weights' place."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights come back."""
        self._swap(pl_module)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end
    on_predict_epoch_start = on_validation_epoch_start
    on_predict_epoch_end = on_validation_epoch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The average becomes the weights for good, after the last checkpoint was written."""
        self._swap(pl_module)
        self._average = {}

    def state_dict(self) -> dict[str, Any]:
        """The average by parameter name."""
        return {"average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the average."""
        self._average = dict(state_dict["average"])

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        own = _trainable(pl_module)
        for name, average in self._average.items():
            kept = own[name].detach().clone()
            own[name].copy_(average)
            average.copy_(kept)


def _trainable(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
