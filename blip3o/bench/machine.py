"""What this machine can do at best: memory read a second, and arithmetic a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

_TRIALS = 7


@dataclass(frozen=True)
class Machine:
    """Measured rates; each is the best of several trials.

    Attributes:
        copy: bytes read and written a second by a copy that fits no cache.
        matvec: bytes of a large matrix read a second by its product with one vector.
        matmul: floating-point operations a second of a large matrix product.
        dtype: precision of `matvec` and `matmul`.
    """

    copy: float
    matvec: float
    matmul: float
    dtype: str

    @property
    def bandwidth(self) -> float:
        """Bytes a second: the larger of both measurements, since neither reaches more than the memory gives."""
        return max(self.copy, self.matvec)

    @classmethod
    def median(cls, several: Sequence[Machine]) -> Machine:
        """The medians of a machine's rates, measured several times."""
        copy, matvec, matmul = (median(getattr(m, name) for m in several) for name in ("copy", "matvec", "matmul"))
        return cls(copy, matvec, matmul, several[0].dtype)

    def to_json(self) -> dict[str, object]:
        """The rates in giga."""
        return {
            "copy_gb_per_s": self.copy / 1e9,
            "matvec_gb_per_s": self.matvec / 1e9,
            "bandwidth_gb_per_s": self.bandwidth / 1e9,
            "matmul_gflop_per_s": self.matmul / 1e9,
            "dtype": self.dtype,
        }


@torch.no_grad()
def measure_machine(device: torch.device, dtype: torch.dtype, megabytes: int = 256, side: int = 2048) -> Machine:
    """Measures a device.

    Args:
        device: which.
        dtype: precision of the products.
        megabytes: size of what is copied and of the matrix; larger than any cache.
        side: rows and columns of the matrices whose product is taken.
    """
    numbers = megabytes * 2**20
    source = torch.ones(numbers, dtype=torch.uint8, device=device)
    copy = 2 * numbers / _best(torch.empty_like(source).copy_, source)
    width = 1024
    matrix = source.view(dtype).view(-1, width).fill_(1)
    vector = torch.ones(1, width, dtype=dtype, device=device)
    matvec = numbers / _best(F.linear, vector, matrix)
    square = torch.ones(side, side, dtype=dtype, device=device)
    matmul = 2 * side**3 / _best(torch.matmul, square, square)
    return Machine(copy, matvec, matmul, str(dtype).removeprefix("torch."))


def _best(run: Callable[..., object], *given: Tensor) -> float:
    """The shortest of several times of a call, in seconds."""
    taken = []
    for _ in range(_TRIALS):
        _wait(given[0].device)
        start = time.perf_counter()
        run(*given)
        _wait(given[0].device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
