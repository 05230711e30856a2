"""Attention within rows that lie end to end: each sees itself alone, and no mask is built.

On a GPU in half precision it is one call of torch's variable-length attention, elsewhere one causal call of SDPA for
each row. Either does the work of the rows themselves: a block mask would have all tokens look at all others first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

try:
    from torch.nn.attention import varlen
except ImportError:  # an older torch has none
    varlen = None  # type: ignore[assignment]

NAME = "sdpa_within_rows"
"""Of this attention among transformers' own. There is no mask of that name, so that transformers makes none."""

WIDEST_HEAD = 256
LEAST_CAPABILITY = (8, 0)
"""Limits of the flash kernel: the width of a head, and CUDA's compute capability."""


def attend_within_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_lengths: tuple[int, ...] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call, with `row_lengths` handed on from the decoder's arguments.

    Args:
        module: the attention layer.
        query: (1, heads, T, D).
        key: (1, key heads, T, D).
        value: (1, key heads, T, D).
        attention_mask: None.
        dropout: of the attention weights.
        scaling: of the scores; 1 / sqrt(D) when None.
        row_lengths: of the rows, T together.
        more: what else transformers' SDPA takes.

    Returns:
        (1, T, heads, D), and None for the weights.

    Raises:
        ValueError: if the model does not hand the lengths on.
    """
    if row_lengths is None:
        raise ValueError(
            f"{type(module).__name__} is not told where rows end, so packing can not be used; set packing to false, or "
            "attention to 'eager', which takes a mask."
        )
    assert attention_mask is None and len(query) == 1
    if runs_varlen(_in_autocast(query), dropout):
        lowered = (_in_autocast(query), _in_autocast(key), _in_autocast(value))
        return attend_varlen(*lowered, row_lengths, scaling)[None], None
    rows = zip(*(one.split(row_lengths, dim=2) for one in (query, key, value)), strict=True)
    mixed = [sdpa_attention_forward(module, *row, None, dropout=dropout, scaling=scaling, **more)[0] for row in rows]
    return torch.cat(mixed, dim=1), None


def runs_varlen(query: Tensor, dropout: float) -> bool:
    """Whether torch's variable-length kernel takes queries (1, heads, T, D)."""
    return (
        varlen is not None
        and {"window_size", "enable_gqa"} <= inspect.signature(varlen.varlen_attn).parameters.keys()
        and query.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= WIDEST_HEAD
        and query.shape[-1] % 8 == 0
        and torch.backends.cuda.flash_sdp_enabled()
        and dropout == 0
    )


def _in_autocast(tensor: Tensor) -> Tensor:
    """A tensor in the precision that autocast gives attention; gains and tables in float32 leave queries in theirs."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, row_lengths: tuple[int, ...], scaling: float | None
) -> Tensor:
    """Attention (T, heads, D) by torch's variable-length kernel."""
    ends = torch.tensor((0, *row_lengths)).cumsum(0).to(query.device, torch.int32)
    query, key, value = (rearrange(one, "1 h t d -> t h d") for one in (query, key, value))
    longest = max(row_lengths)
    grouped = query.shape[1] != key.shape[1]
    mixed = varlen.varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(mixed, Tensor), "nothing beside it was asked for"
    return mixed


@contextmanager
def attention_named(config: PreTrainedConfig, name: str | None) -> Iterator[None]:
    """Within the block, a model with this config attends by another of transformers' implementations."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, attend_within_rows)
