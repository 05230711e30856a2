"""What a model remembers while it decodes: keys and values, recurrent states, or both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
_REWINDABLE = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
_TOKENS, _PADDING = 4, 3  # of the rows that `leaves_out_padding` reads

Read = Callable[[Tensor, Tensor, DynamicCache | None], Tensor]


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache with the layers of a model: full or sliding attention, linear attention, state space."""
    return DynamicCache(config=config)


def rewindable_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache whose newest entries can be taken back, since every layer keeps all keys and values or has none.

    Those beyond a sliding window are kept too; the model's own masks leave them out.

    Raises:
        ValueError: if a layer keeps anything else, such as a recurrent state, which can not be taken back.
    """
    cache = new_cache(config)
    if any(type(layer) not in _REWINDABLE for layer in cache.layers):
        raise ValueError(
            f"decoding ('jacobi') takes back what a model read, but model_type ({config.model_type}) keeps a state "
            "from which nothing can be taken back; set decoding to 'sequential', or choose a model of attention alone."
        )
    cache.layers = [layer if type(layer) is DummyLayer else DynamicLayer() for layer in cache.layers]
    return cache


def state_arguments(
    decoder: PreTrainedModel, cache: DynamicCache | None, attention_mask: Tensor | None, position_ids: Tensor | None
) -> dict[str, Any]:
    """Cache, mask and positions by the names a decoder takes them.

    State-space models take no positions; once their state is full, they take no mask either, whose width is not theirs.
    """
    name = cache_argument(decoder)
    if name == "cache_params" and cache is not None and cache.has_previous_state():
        attention_mask = None
    arguments = {name: cache, "use_cache": cache is not None, "attention_mask": attention_mask}
    positions = {"position_ids": position_ids} if "position_ids" in forward_arguments(decoder) else {}
    return arguments | positions


def cache_argument(decoder: PreTrainedModel) -> str:
    """The name by which a decoder takes its cache.

    Raises:
        ValueError: if it takes no cache of transformers.
    """
    for name in CACHE_ARGUMENTS:
        if name in forward_arguments(decoder):
            return name
    raise ValueError(
        f"model_type ({decoder.config.model_type}) keeps its state in none of {CACHE_ARGUMENTS}, so it can not be "
        "decoded here; choose another model."
    )


def forward_arguments(decoder: PreTrainedModel) -> frozenset[str]:
    """The names of what a decoder takes."""
    return _arguments(type(decoder).forward)


@lru_cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@torch.no_grad()
def leaves_out_padding(lm: PreTrainedModel, read: Read) -> bool:
    """Whether the hidden states of a left-padded row are those of the row alone, in a whole pass and while decoding.

    Attention never sees masked positions, but a recurrent state runs through them: some models keep them out of it,
    some do not, so a model that has one is tried. Its biases may start at zero and bring padding into the state later:
    they are moved for this.

    Args:
        lm: the model, in evaluation mode.
        read: gives its hidden states (B, T, H) of ids (B, T) and a mask over them and what the cache holds.

    Raises:
        ValueError: if the model takes no cache of transformers, or decoding with it gives other hidden states than a
            whole pass.
    """
    name = cache_argument(lm.get_decoder())
    if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in new_cache(lm.config).layers):
        if name == "cache_params":
            raise ValueError(f"model_type ({lm.config.model_type}) needs a cache of its own; choose another model.")
        return True
    ids = torch.arange(_TOKENS, device=lm.device).flip(0)[None]
    padded = torch.cat([ids[:, :_PADDING], ids], dim=1)
    ones = torch.ones_like(ids, dtype=torch.bool)
    mask = torch.arange(padded.shape[1], device=lm.device)[None] >= _PADDING

    def decoded(ids: Tensor, mask: Tensor) -> Tensor:
        cache = new_cache(lm.config)
        rest = [read(ids[:, :-2], mask[:, :-2], cache)]
        rest += [read(ids[:, [at]], mask[:, : at + 1], cache) for at in range(ids.shape[1] - 2, ids.shape[1])]
        return torch.cat(rest, dim=1)

    with _moved_biases(lm):
        whole = read(ids, ones, None)
        tolerance = 1e-3 if whole.dtype in (torch.float32, torch.float64) else 5e-2

        def equals_whole(other: Tensor) -> bool:
            difference = (other[:, -_TOKENS:].float() - whole.float()).abs().max()
            return bool(difference <= tolerance * whole.float().abs().max())

        if not equals_whole(decoded(ids, ones)):
            raise ValueError(
                f"model_type ({lm.config.model_type}) gives other hidden states when it is decoded with its cache than "
                "in a whole pass; choose another model."
            )
        return equals_whole(read(padded, mask, None)) and equals_whole(decoded(padded, mask))


@contextmanager
def _moved_biases(lm: PreTrainedModel) -> Iterator[None]:
    """Every bias is larger by a half inside, and as it was outside."""
    biases = [parameter for name, parameter in lm.named_parameters() if name.endswith("bias")]
    stored = [bias.clone() for bias in biases]
    try:
        for bias in biases:
            bias.add_(0.5)
        yield
    finally:
        for bias, value in zip(biases, stored, strict=True):
            bias.copy_(value)
