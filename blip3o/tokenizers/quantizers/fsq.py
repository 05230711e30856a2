"""FSQ: finite scalar quantisation, without a codebook to learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blip3o.tokenizers.quantizers.base import Quantizer


class FSQ(Quantizer):
    """Finite scalar quantisation (arXiv 2309.15505): each dimension rounded to a few levels, no codebook to learn.

    Args:
        levels: number of levels of each dimension; their product is the codebook size.
    """

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels ({levels}) must be one or more numbers of at least 2.")
        self.num_levels = list(levels)
        self.levels: Tensor
        self.basis: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.num_levels)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return len(self.num_levels)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes in [-1, 1]; there is no loss."""
        span = (self.levels - 1).to(vectors.dtype)
        bounded = (torch.tanh(vectors) + 1) / 2 * span
        steps = bounded + (bounded.round() - bounded).detach()
        ids = (steps.round().long() * self.basis).sum(-1)
        return steps / span * 2 - 1, ids, vectors.new_zeros(())

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids."""
        steps = ids[..., None] // self.basis % self.levels
        return steps / (self.levels - 1) * 2 - 1
