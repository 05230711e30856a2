"""Sines and cosines of noise levels and of places."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(values: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Cosines and sines of `values` (B,) at geometrically spaced frequencies: (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=values.device) / half)
    angles = values[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_2d(rows: int, columns: int, width: int, *, spacing: float = 1.0) -> Tensor:
    """Positions of a grid in raster order: (rows * columns, width), half of the width for each axis.

    Cells are `spacing` apart, and the centre of the first is as far in as its size asks: with a spacing of 2 it lies
    between the first two cells of a grid twice as fine.
    """
    down, across = (
        sinusoids((torch.arange(count) + 0.5) * spacing - 0.5, width // 2, max_period=100.0)
        for count in (rows, columns)
    )
    return torch.cat([down.repeat_interleave(columns, dim=0), across.repeat(rows, 1)], dim=-1)
