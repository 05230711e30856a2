"""Optimizers and schedules: AdamW or Muon with AdamW, warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from blip3o.training.muon import Muon

OptimizerName = Literal["adamw", "muon"]
MuonDtype = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear"]


class MuonAdamW(Optimizer):
    """Muon for the hidden matrices, AdamW for everything else, as one optimizer.

    Args:
        muon_params: 2-D weights.
        adamw_params: all others.
        lr: learning rate of both.
        adamw_lr: learning rate of the AdamW group, `lr` when None.
        muon_dtype: precision of Muon's iterations.
        betas: AdamW's moments.
        weight_decay: decoupled decay of both.
    """

    def __init__(
        self,
        muon_params: Iterable[nn.Parameter],
        adamw_params: Iterable[nn.Parameter],
        *,
        lr: float,
        adamw_lr: float | None = None,
        muon_dtype: MuonDtype = "float32",
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        self.parts: list[Optimizer] = []
        muon_list, adamw_list = list(muon_params), list(adamw_params)
        if muon_list:
            self.parts.append(Muon(muon_list, lr=lr, weight_decay=weight_decay, dtype=getattr(torch, muon_dtype)))
        if adamw_list:
            own_lr = lr if adamw_lr is None else adamw_lr
            self.parts.append(AdamW(adamw_list, lr=own_lr, betas=betas, weight_decay=weight_decay))
        super().__init__([{"params": [*muon_list, *adamw_list]}], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_optimizer(
    named_parameters: Iterator[tuple[str, nn.Parameter]],
    *,
    name: OptimizerName,
    lr: float,
    adamw_lr: float | None = None,
    muon_dtype: MuonDtype = "float32",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Optimizer:
    """An optimizer over the parameters that require a gradient.

    With `muon`, every 2-D parameter goes to Muon but those whose names are those of embeddings, output heads, codebooks
    or learned queries (see `_looks_up`); these and everything else stay with AdamW.

    Raises:
        ValueError: if none requires one.
    """
    named = [(n, p) for n, p in named_parameters if p.requires_grad]
    if not named:
        raise ValueError("no parameter is trainable; check the `trainable` patterns.")
    if name == "adamw":
        return AdamW([p for _, p in named], lr=lr, betas=betas, weight_decay=weight_decay)
    hidden = {n for n, p in named if p.ndim == 2 and not _looks_up(n)}
    return MuonAdamW(
        [p for n, p in named if n in hidden],
        [p for n, p in named if n not in hidden],
        lr=lr,
        adamw_lr=adamw_lr,
        muon_dtype=muon_dtype,
        betas=betas,
        weight_decay=weight_decay,
    )


def state_size(optimizer: Optimizer) -> int:
    """Numbers that an optimizer of `build_optimizer` keeps: two for every parameter with AdamW, one with Muon."""
    parts = optimizer.parts if isinstance(optimizer, MuonAdamW) else [optimizer]
    return sum(
        parameter.numel() * (1 if isinstance(part, Muon) else 2)
        for part in parts
        for group in part.param_groups
        for parameter in group["params"]
    )


def _looks_up(name: str) -> bool:
    """Whether a parameter belongs to an embedding, a codebook, learned queries or an output head."""
    return any(one.startswith("embed") or one.endswith(("head", "codebook", "queries")) for one in name.split("."))


def build_schedule(
    optimizer: Optimizer,
    *,
    name: Schedule,
    warmup_steps: int,
    total_steps: int,
    min_ratio: float = 0.0,
    decay_fraction: float = 1.0,
) -> LambdaLR:
    """Linear warm-up, a flat stretch, then decay over the last `decay_fraction` of the steps.

    Args:
        optimizer: whose learning rates are scaled.
        name: shape of the decay.
        warmup_steps: steps until the full learning rate.
        total_steps: steps of the whole run.
        min_ratio: share of the learning rate at the end.
        decay_fraction: share of the run that decays.
    """
    start = max(warmup_steps, int(total_steps * (1 - decay_fraction)))

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, max(0, step - start) / max(1, total_steps - start))
        left = (1 + math.cos(math.pi * done)) / 2 if name == "cosine" else 1 - done
        return min_ratio + (1 - min_ratio) * left

    return LambdaLR(optimizer, scale)
