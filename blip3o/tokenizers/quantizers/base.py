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

        The ids of a vector follow one another, and the sum of their codes is the quantised vector. Codes carry a
        straight-through gradient: that sum passes the gradient on to the vector unchanged.
        """

    @abstractmethod
    def codes(self, ids: Tensor) -> Tensor:
        """Codes (..., dim) of ids (...)."""


def check_least(least: float, **values: float) -> None:
    """Raises a ValueError where a value, given by its argument's name, is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} ({value}) must be at least {least}.")
