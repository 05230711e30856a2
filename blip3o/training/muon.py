"""Muon in a precision of one's choice: torch's own always works in bfloat16, which is slow where it is emulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Momentum whose update of each matrix is made orthogonal (K. Jordan et al., 2024).

    The update of an m x n matrix is scaled by 0.2 sqrt(max(m, n)), which matches AdamW's root mean square (arXiv
    2502.16982), so that AdamW's learning rates can be kept. Matrices of one shape are treated in one batch. Where
    several processes hold the same gradients, as under DDP, each treats its share of a batch and gets the others'.

    Args:
        params: 2-D weights.
        lr: learning rate.
        momentum: decay of the (Nesterov) momentum.
        weight_decay: decoupled weight decay.
        num_iterations: Newton-Schulz iterations.
        dtype: precision of the iterations.

    Raises:
        ValueError: if a parameter is not 2-D.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        num_iterations: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"num_iterations": num_iterations})
        self.dtype = dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"params holds a tensor of shape {tuple(p.shape)}; Muon takes matrices only.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    by_shape[p.shape].append((p, torch.lerp(p.grad, momentum, group["momentum"])))
            for shape, pairs in by_shape.items():
                updates = torch.stack([update for _, update in pairs]).to(self.dtype)
                orthogonal = _orthogonalize_by_shares(updates, group["num_iterations"])
                step_size = -group["lr"] * 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, orthogonal, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(p.dtype), alpha=step_size)
        return loss


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of (B, m, n), by quintic Newton-Schulz iterations.

    Singular values end between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _orthogonalize_by_shares(matrices: Tensor, num_iterations: int) -> Tensor:
    """`orthogonalize`, of which each process does a share of the matrices (B, m, n)."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1 or len(matrices) == 1:
        return orthogonalize(matrices, num_iterations)
    share = -(-len(matrices) // processes)
    padded = F.pad(matrices, (0, 0, 0, 0, 0, share * processes - len(matrices)))
    own = orthogonalize(padded[dist.get_rank() * share :][:share], num_iterations).contiguous()
    shares = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(shares, own)
    return torch.cat(shares)[: len(matrices)]
