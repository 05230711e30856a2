"""Products of a few rows with one weight, which decoding does once a layer and token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_ROWS = 4
"""Rows that a packed product is given at least: oneDNN reads the weight faster for four rows than for one."""

PACKED_FROM = 24
"""Tokens to decode from which packing pays: it takes about as long as it saves in a dozen."""

Product = Callable[[Tensor], Tensor]


def product(weight: Tensor, bias: Tensor | None, rows: int, *, packed: bool) -> Product:
    """`x (rows, in) -> (rows, out)`, x being in the weight's precision.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        rows: of every x.
        packed: whether the weight is copied into the layout that oneDNN reads, see `packs`.
    """
    if not packed:
        return lambda x: F.linear(x, weight, bias)
    layout = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    run = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: run(x, layout, bias, "none", [], "")


def stacked(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Weights (out_i, in) that read the same rows as one (sum of out_i, in), and their biases, zero where one has none.

    One weight alone is not copied where it has the precision already.
    """
    cast = [weight.detach().to(dtype) for weight in weights]
    weight = cast[0] if len(cast) == 1 else torch.cat(cast)
    if all(bias is None for bias in biases):
        return weight, None
    filled = [
        one.new_zeros(len(one)) if bias is None else bias.detach().to(dtype)
        for one, bias in zip(cast, biases, strict=True)
    ]
    return weight, torch.cat(filled)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed products work here: on x86 processors with oneDNN, in float32 and bfloat16."""
    if device.type != "cpu" or not torch.backends.mkldnn.enabled or dtype not in (torch.float32, torch.bfloat16):
        return False
    return _tried(dtype)


@lru_cache
@torch.no_grad()
def _tried(dtype: torch.dtype) -> bool:
    """Packs a small weight and compares. The operators are those of torch's own compiler, and no public ones."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 64, generator=generator).to(dtype) for rows in (96, FEWEST_ROWS))
    try:
        packed = product(weight, weight[:, 0].contiguous(), FEWEST_ROWS, packed=True)(x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    expected = F.linear(x.float(), weight.float(), weight[:, 0].float())
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    return packed.dtype == dtype and bool((packed.float() - expected).abs().max() < tolerance)
