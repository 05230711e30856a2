"""The contract of the quantizers: vectors to ids of a codebook, and back."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blip3o.part import Part


class Quantizer(Part):
    """Snaps vectors to a finite set and names the members."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def tokens_per_vector(self) -> int:
        """Ids K that name one vector: one, unless the quantizer is residual."""
        return 1

    @abstractmethod
    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (..., M, dim) to codes (..., M K, dim), ids (..., M K) int64 and a scalar loss.

        The ids of a vector follow one another. Codes carry a straight-through gradient: what `merge` makes of them
        passes the gradient on to the vectors unchanged.
        """

    @abstractmethod
    def codes(self, ids: Tensor) -> Tensor:
        """Codes (..., dim) of ids (...)."""

    def merge(self, codes: Tensor) -> Tensor:
        """Quantised vectors (..., M, dim) of codes (..., M K, dim): the sum of the K codes of each."""
        k = self.tokens_per_vector
        return codes if k == 1 else codes.unflatten(-2, (-1, k)).sum(-2)
