"""Random numbers that depend on (seed, row, purpose) alone, not on batches, processes or restarts."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stable_seed(seed: int, number: int, purpose: str) -> int:
    """A seed in [0, 2**56) that looks random and is the same everywhere."""
    digest = hashlib.blake2b(f"{seed}/{number}/{purpose}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def row_generators(seed: int, index: Tensor, purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator for each row of `index` (B,) int64; `purpose` keeps independent streams apart."""
    return [torch.Generator(device).manual_seed(stable_seed(seed, row, purpose)) for row in index.tolist()]


def row_uniform(seed: int, index: Tensor, purpose: str) -> Tensor:
    """One number in [0, 1) for each row of `index` (B,): (B,) float32 on its device."""
    generators = row_generators(seed, index, purpose)
    numbers = [torch.rand(1, generator=generator) for generator in generators]
    return torch.cat(numbers).to(index.device) if numbers else torch.zeros(0, device=index.device)
