"""What mixes the positions in the layers of a lean step: attention, and LFM2's short convolutions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from blip3o.ar.packing import Product


def rms_norm(x: Tensor, gain: Tensor, eps: Tensor) -> Tensor:
    """The RMS norm over the last axis, in float32 up to the gain."""
    exact = x.float()
    norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scale = torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (exact * scale).to(x.dtype) * gain


class Mixer(ABC):
    """Reads one more token a row, and remembers what those after it need."""

    @abstractmethod
    def __call__(self, x: Tensor, now: int) -> Tensor:
        """Normed states (padded rows, H) of the token number `now` since the prompts, to the same shape."""


class Rotations:
    """Rotary embeddings of the tokens to come, and which positions they see: one for all layers.

    Args:
        cos, sin: (B, N, head width), of the tokens to come.
        attention_mask: (B, T) bool, of the prompts.
        dtype: of the attention.
    """

    def __init__(self, cos: Tensor, sin: Tensor, attention_mask: Tensor, dtype: torch.dtype) -> None:
        half, self.num_tokens, self.dtype = cos.shape[-1] // 2, cos.shape[1], dtype
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self.cos, self.sin = (rearrange(t, "b n d -> n b 1 d").contiguous() for t in (cos, sin))
        self.num_seen = attention_mask.shape[1]
        self.mask = None
        if not attention_mask.all():
            hidden = F.pad(~attention_mask, (0, self.num_tokens))[:, None, None]
            self.mask = torch.zeros(hidden.shape, dtype=dtype, device=cos.device).masked_fill_(hidden, -torch.inf)


class Attention(Mixer):
    """Attention to all positions before.

    Args:
        config: the model's.
        qkv: product that gives queries, keys and values.
        out: product after it.
        norms: those of queries and keys, None without.
        rotations: of the tokens to come.
        eps: the norms'.
        stored: keys and values of the prompts.
        padded: rows that the products are given.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        qkv: Product,
        out: Product,
        norms: Sequence[nn.Module | None],
        rotations: Rotations,
        eps: Tensor,
        stored: Any,
        padded: int,
    ) -> None:
        assert isinstance(stored, DynamicLayer) and stored.keys is not None and stored.values is not None
        self._qkv, self._out = qkv, out
        self._rotations, self._eps = rotations, eps
        self._num_queries, self._num_keys = config.num_attention_heads, config.num_key_value_heads
        counts = (self._num_queries, self._num_keys)
        gains = [
            repeat(norm.weight.detach(), "d -> h d", h=count)  # type: ignore[operator]
            for norm, count in zip(norms, counts, strict=True)
            if norm is not None
        ]
        self._gains = torch.cat(gains) if gains else None
        self._rows, _, length, self._width = stored.keys.shape
        shape = (self._rows, 2, self._num_keys, length + rotations.num_tokens, self._width)
        self._cache = stored.keys.new_zeros(shape, dtype=rotations.dtype)
        self._cache[:, :, :, :length] = torch.stack([stored.keys, stored.values], dim=1)
        # Rows of padding stay zero.
        self._mixed = self._cache.new_zeros(padded, self._num_queries * self._width)

    def __call__(self, x: Tensor, now: int) -> Tensor:
        """The new keys and values join those before."""
        rows, queries, keys, at = self._rows, self._num_queries, self._num_keys, self._rotations.num_seen + now
        cos, sin, mask = self._rotations.cos[now], self._rotations.sin[now], self._rotations.mask
        heads = self._qkv(x).narrow(0, 0, rows).view(rows, queries + 2 * keys, self._width)
        turned = heads.narrow(1, 0, queries + keys)
        rotated = turned if self._gains is None else rms_norm(turned, self._gains, self._eps)
        torch.addcmul(rotated * cos, rotated.roll(self._width // 2, -1), sin, out=turned)
        self._cache.select(3, at).copy_(heads.narrow(1, queries, 2 * keys).view(rows, 2, keys, self._width))
        # Heads that share keys are as many positions of one head, which reads its keys once.
        asked = heads.narrow(1, 0, queries).view(rows, keys, queries // keys, self._width)
        seen_keys, seen_values = self._cache.narrow(3, 0, at + 1).unbind(1)
        seen = None if mask is None else mask[..., : at + 1]
        mixed = F.scaled_dot_product_attention(asked, seen_keys, seen_values, attn_mask=seen).reshape(rows, -1)
        if rows == len(self._mixed):
            return self._out(mixed)
        self._mixed[:rows] = mixed
        return self._out(self._mixed)


class ShortConv(Mixer):
    """LFM2's gated convolution over the last few positions, a filter a channel.

    Args:
        conv: the filters.
        read: product that gives the two gates and what is filtered.
        written: product after it.
        stored: what was filtered at the end of the prompts.
        num_tokens: tokens to come.
        padded: rows that the products are given.
        dtype: of what is filtered.
    """

    def __init__(
        self,
        conv: nn.Conv1d,
        read: Product,
        written: Product,
        stored: Any,
        num_tokens: int,
        padded: int,
        dtype: torch.dtype,
    ) -> None:
        assert isinstance(stored, LinearAttentionLayer) and stored.conv_states[0] is not None
        self._read, self._written = read, written
        self._filter = rearrange(conv.weight.detach(), "h 1 l -> l 1 h").to(dtype).contiguous()
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        before = len(self._filter) - 1
        past = rearrange(stored.conv_states[0], "b h l -> l b h")
        _, rows, width = past.shape
        # Positions come first, so that those a filter covers lie in one piece.
        self._past = past.new_zeros((before + num_tokens, padded, width), dtype=dtype)
        self._past[:before, :rows] = past[len(past) - before :]

    def __call__(self, x: Tensor, now: int) -> Tensor:
        """What is filtered joins what was before."""
        before, after, value = self._read(x).chunk(3, dim=-1)
        reach = len(self._filter)
        torch.mul(before, value, out=self._past[now + reach - 1])
        filtered = (self._past[now : now + reach] * self._filter).sum(0)
        return self._written(after * (filtered if self._bias is None else filtered + self._bias))
