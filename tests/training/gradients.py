"""A callback that keeps what the first step did, for comparing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer


class SaveFirstStep(Callback):
    """Writes the gradients of step 0, as they are before clipping, and the weights after it to a safetensors file.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.tensors: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step == 0:
            named = pl_module.named_parameters()
            self.tensors = {f"gradient.{name}": p.grad.clone() for name, p in named if p.grad is not None}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            weights = {f"weight.{name}": p.detach().clone() for name, p in pl_module.named_parameters()}
            save_file(self.tensors | weights, self.path)
