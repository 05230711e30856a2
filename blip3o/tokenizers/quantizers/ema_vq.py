"""EMA-VQ: a codebook that follows the vectors by moving averages instead of gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import (
    sample_vectors_distributed,
)

from blip3o.tokenizers.quantizers.base import Quantizer, check_least


class EMAVQ(Quantizer):
    """Vector quantisation with exponential moving averages (VQ-VAE, arXiv 1711.00937, appendix A.1).

    In training every call moves each code towards the mean of the vectors it was nearest to; `vector_quantize_pytorch`
    does that. Evaluation changes nothing. Codes that hardly any vector uses are put on vectors of the batch, drawn by
    torch's global generator as dropout is. In several processes all move their codebooks by the vectors of all.

    Args:
        codebook_size: number of codes.
        dim: width of a code.
        decay: of the moving averages, in [0, 1).
        commitment_weight: weight of the mean squared distance of vectors to their codes.
        revive_below: a code is put on a vector when fewer vectors a batch than this, averaged, use it; 0 for never.

    Raises:
        ValueError: if there are fewer than two codes, or a number is out of range.
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 16,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_below: float = 0.1,
    ) -> None:
        super().__init__()
        check_least(2, codebook_size=codebook_size)
        check_least(1, dim=dim)
        self.vq = VectorQuantize(
            dim, codebook_size, **averaging(decay=decay, commitment_weight=commitment_weight, revive_below=revive_below)
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.vq.codebook_size)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vq.dim)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest codes, compared in float32; the loss is the commitment, and zero in evaluation."""
        join_processes(self.vq)
        with torch.autocast(vectors.device.type, enabled=False):
            exact = vectors.float()
            codes, ids, loss = self.vq(exact.reshape(1, -1, self.dim))
            features = exact + (codes.view(exact.shape) - exact).detach()
        return features.to(vectors.dtype), ids.view(exact.shape[:-1]), loss

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids, as the codebook stands."""
        return self.vq.get_codes_from_indices(ids)


def averaging(*, decay: float, commitment_weight: float, revive_below: float) -> dict[str, Any]:
    """Arguments of `VectorQuantize` for moving averages; the gradient is ours, so its rotation trick is off.

    Raises:
        ValueError: if a number is out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay ({decay}) must lie in [0, 1).")
    check_least(0, commitment_weight=commitment_weight, revive_below=revive_below)
    return {
        "decay": decay,
        "commitment_weight": commitment_weight,
        "threshold_ema_dead_code": revive_below,
        "rotation_trick": False,
        "sync_codebook": False,
    }


def join_processes(vq: VectorQuantize) -> None:
    """Lets the codebook of every process move by the vectors of all.

    The library decides that when it is built, and models are built before the processes find each other.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        vq._codebook.all_reduce_fn = dist.all_reduce
        vq._codebook.replace_sample_fn = sample_vectors_distributed
