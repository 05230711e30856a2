"""Residual VQ: a few codes a vector, each for what the ones before it left over."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ as ResidualLayers

from blip3o.tokenizers.quantizers.base import Quantizer, check_least
from blip3o.tokenizers.quantizers.ema_vq import averaging, join_processes


class ResidualVQ(Quantizer):
    """Residual quantisation (RQ-VAE, arXiv 2203.01941), over codebooks that follow moving averages as in `EMAVQ`.

    A vector gets K = `num_levels` ids that follow one another, coarse to fine; its quantised value is the sum of
    their codes. Level k's ids are k * level_size ... (k + 1) * level_size - 1, so that an id alone names its code, and
    any ids in range can be decoded, whatever levels an AR model mixes: their codes are added up.

    The loss is RQ-VAE's commitment: of the vector to each of the partial sums. In training every call moves the
    codebooks; evaluation changes nothing.

    Args:
        num_levels: ids K a vector.
        level_size: codes of a level; the codebook has num_levels * level_size.
        dim: width of a code.
        decay: of the moving averages, in [0, 1).
        commitment_weight: weight of the commitment.
        revive_below: a code is put on a left-over of the batch when fewer a batch than this, averaged, use it; 0 for
            never.

    Raises:
        ValueError: if there are no levels or fewer than two codes in each, or a number is out of range.
    """

    def __init__(
        self,
        *,
        num_levels: int = 4,
        level_size: int = 256,
        dim: int = 16,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_below: float = 0.1,
    ) -> None:
        super().__init__()
        check_least(1, num_levels=num_levels, dim=dim)
        check_least(2, level_size=level_size)
        self.level_size = level_size
        self._dim = dim
        self.vq = ResidualLayers(
            dim=dim,
            num_quantizers=num_levels,
            codebook_size=level_size,
            **averaging(decay=decay, commitment_weight=commitment_weight, revive_below=revive_below),
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes, of all levels together."""
        return self.tokens_per_vector * self.level_size

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._dim

    @property
    def tokens_per_vector(self) -> int:
        """Ids K that name one vector: one a level."""
        return int(self.vq.num_quantizers)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (..., M K, dim) whose sums are the quantised vectors, their ids (..., M K), and the commitment."""
        for layer in self.vq.layers:
            join_processes(layer)
        k = self.tokens_per_vector
        # In training a call moves the codebooks, so the codes are looked up in them as they were.
        table = self._table().clone() if self.training else self._table()
        with torch.autocast(vectors.device.type, enabled=False):
            exact = vectors.float()
            _, levels, losses = self.vq(exact.reshape(1, -1, self.dim))
            ids = (levels + torch.arange(k, device=levels.device) * self.level_size).view(*exact.shape[:-1], k)
            # Each of the K codes passes a K-th of the gradient on; their sum passes all of it.
            share = (exact - exact.detach()) / k
            features = table[ids].float() + share.unsqueeze(-2)
        flat = rearrange(features, "... m k d -> ... (m k) d").to(vectors.dtype)
        return flat, rearrange(ids, "... m k -> ... (m k)"), reduce(losses, "k -> ", "sum")

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids, as the codebooks stand."""
        return self._table()[ids]

    def _table(self) -> Tensor:
        """The codes of all levels: (codebook_size, dim)."""
        return rearrange(self.vq.codebooks, "k c d -> (k c) d")
