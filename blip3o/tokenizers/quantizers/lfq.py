"""LFQ and BSQ: one bit a dimension, no codebook to look anything up in."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from blip3o.tokenizers.quantizers.base import Quantizer, check_least

_MOST_BITS = 24
_SMALLEST = 1e-30  # keeps the logarithm of a share that underflowed finite


class Entropies(NamedTuple):
    """Entropies in nats of the soft assignment of vectors to codes.

    Attributes:
        sample: scalar, mean over the vectors of the entropy of each; low where vectors are sure of their code.
        codebook: scalar, entropy of the mean assignment; at most log(codebook_size), where all codes are used alike.
    """

    sample: Tensor
    codebook: Tensor


class LFQ(Quantizer):
    """Lookup-free quantisation (MAGVIT-v2, arXiv 2310.05737), or binary spherical quantisation (arXiv 2406.07548).

    Each dimension becomes its sign: codes are the corners -1, 1 of a cube, or with `spherical` these corners and the
    vectors scaled to length 1. An entropy term, sample minus `diversity` times codebook, makes vectors sure of their
    code and all codes used. A vector v is assigned to code c by softmax(-|v - c|^2 / temperature).

    That softmax is a product over the dimensions, so both entropies are computed without a table of vectors by codes:
    the sample's as a sum over the bits, the codebook's from the two halves of the bits, exactly.

    In several processes the codebook's entropy is that of each process's own batch.

    Args:
        num_bits: dimensions; there are 2**num_bits codes.
        spherical: BSQ instead of LFQ.
        entropy_weight: weight of the entropy term.
        diversity: weight of the codebook's entropy in it.
        commitment_weight: weight of the mean squared distance of vectors to their codes.
        temperature: of the soft assignment; BSQ's inverse temperature is 2 / temperature.

    Raises:
        ValueError: if the number of bits is not in 1..24, the temperature not positive, or the commitment negative.
    """

    def __init__(
        self,
        *,
        num_bits: int = 9,
        spherical: bool = False,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not 1 <= num_bits <= _MOST_BITS:
            raise ValueError(f"num_bits ({num_bits}) must lie in 1..{_MOST_BITS}; there are 2**num_bits codes.")
        if temperature <= 0:
            raise ValueError(f"temperature ({temperature}) must be positive.")
        check_least(0, commitment_weight=commitment_weight)
        self.num_bits = num_bits
        self.spherical = spherical
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.commitment_weight = commitment_weight
        self.temperature = temperature
        self.scale = num_bits**-0.5 if spherical else 1.0
        self.basis: Tensor
        self.register_buffer("basis", 2 ** torch.arange(num_bits), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(2**self.num_bits)

    @property
    def dim(self) -> int:
        """Width of a vector: one dimension a bit."""
        return self.num_bits

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signs; in training the loss is entropy plus commitment, in evaluation it is zero."""
        with torch.autocast(vectors.device.type, enabled=False):
            exact = vectors.float()
            if self.spherical:
                exact = F.normalize(exact, dim=-1)
            positive = exact > 0
            codes = (positive.float() * 2 - 1) * self.scale
            loss = exact.new_zeros(())
            if self.training:
                sample, codebook = self.entropies(exact)
                loss = self.entropy_weight * (sample - self.diversity * codebook)
                loss = loss + self.commitment_weight * (exact - codes).square().mean()
            features = exact + (codes - exact).detach()
        return features.to(vectors.dtype), (positive * self.basis).sum(-1), loss

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids."""
        positive = ids[..., None] // self.basis % 2
        return (positive.to(torch.get_default_dtype()) * 2 - 1) * self.scale

    def entropies(self, vectors: Tensor) -> Entropies:
        """Entropies of vectors (..., dim), which `spherical` expects at length 1."""
        # |v - c|^2 of the two signs of a bit differs by 4 v scale.
        logits = rearrange(vectors, "... d -> (...) d") * (4 * self.scale / self.temperature)
        shares = logits.sigmoid()
        sample = (F.softplus(logits) - logits * shares).sum(-1).mean()
        half = self.num_bits // 2
        low, high = self._joint(shares[:, :half]), self._joint(shares[:, half:])
        mean = low.T @ high / len(shares)
        return Entropies(sample, -(mean * mean.clamp_min(_SMALLEST).log()).sum())

    @staticmethod
    def _joint(shares: Tensor) -> Tensor:
        """Shares (N, bits) of the bits that are set, independent of one another, to shares (N, 2**bits) of words."""
        joint = shares.new_ones(len(shares), 1)
        for share in shares.unbind(1):
            joint = torch.cat([joint * (1 - share[:, None]), joint * share[:, None]], dim=1)
        return joint
