"""What decoding starts from: prompts that a decoder has read, each different one once; and what is wanted of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from blip3o.ar.base import Sampling
from blip3o.ar.repeats import repeat_rows, without_repeats
from blip3o.ar.steps import States


@dataclass(frozen=True)
class Start:
    """Prompts that a decoder has read: B rows, or 2 B where token guidance puts the negative prompts after them.

    Attributes:
        rows: B.
        cache: what the decoder remembers of them.
        attention_mask: (B or 2 B, T) bool, False at left padding.
        position: position ids of their last tokens, (..., B or 2 B, 1).
        hidden: (B or 2 B, H) last hidden states at their last tokens.
        states: of all layers at all of their tokens, None where they are not kept.
    """

    rows: int
    cache: DynamicCache
    attention_mask: Tensor
    position: Tensor
    hidden: Tensor
    states: States | None

    @property
    def copies(self) -> int:
        """1, or 2 with token guidance."""
        return len(self.hidden) // self.rows


@dataclass(frozen=True)
class Wanted:
    """What to decode.

    Attributes:
        num_tokens: tokens of a row, N.
        first_code: id of the first code.
        sampling: how they are drawn.
        generator: source of the draws, one or one a row.
        guidance_scale: of the token guidance; 1 where there is none.
        layers: layers whose states are kept, or None.
    """

    num_tokens: int
    first_code: int
    sampling: Sampling
    generator: torch.Generator | Sequence[torch.Generator] | None
    guidance_scale: float
    layers: Sequence[int] | None


def read_prompts(
    inputs_of: Callable[..., dict[str, Any]],
    run: Callable[..., Any],
    cache: DynamicCache,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    rows: int,
    inputs_embeds: Tensor | None,
    images: Tensor | None,
    keep_layers: bool,
) -> Start:
    """Reads left-padded prompts; of equal ones, one alone.

    Args:
        inputs_of: gives what the decoder reads of ids, mask, embeddings and images.
        run: the decoder without its head, called with inputs, mask and cache.
        cache: empty; it holds the prompts afterwards.
        input_ids: (B or 2 B, T) int64.
        attention_mask: (B or 2 B, T) bool.
        rows: B.
        inputs_embeds: (B, T, H) in place of the ids' own embeddings, or None.
        images: (B or 2 B, R, 3, h, w) that the decoder reads itself, or None.
        keep_layers: whether the states of all layers are kept.
    """
    source = None
    asked_ids, asked_mask = input_ids, attention_mask
    if inputs_embeds is None and images is None:
        asked_ids, asked_mask, source = without_repeats(input_ids, attention_mask)
    inputs = inputs_of(asked_ids, asked_mask, inputs_embeds, images)
    output = run(inputs, asked_mask, cache, keep_layers=keep_layers)
    position = inputs["position_ids"][..., -1:]
    if source is not None:
        cache.reorder_cache(source)
        repeat_rows(output, source)
        position = position[source]
    states = output.hidden_states if keep_layers else None
    return Start(rows, cache, attention_mask, position, output.last_hidden_state[:, -1], states)


def with_negative(
    prompts: tuple[Tensor, Tensor],
    negative: tuple[Tensor, Tensor] | None,
    scale: float,
    inputs_embeds: Tensor | None,
    images: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids (2 B, T), mask and images of prompts and, after them, of the negative prompts of token guidance.

    Raises:
        ValueError: if there are none, or embeddings are given in place of ids.
    """
    if inputs_embeds is not None:
        raise ValueError(f"token_guidance_scale ({scale}) can not be used with inputs_embeds; set it to 1.")
    if negative is None:
        raise ValueError(f"token_guidance_scale ({scale}) needs negative prompts; pass `negative`.")
    width = max(prompts[0].shape[1], negative[0].shape[1])
    pairs = zip(prompts, negative, strict=True)
    ids, mask = (torch.cat([F.pad(one, (width - one.shape[1], 0)) for one in pair]) for pair in pairs)
    return ids, mask, None if images is None else torch.cat([images, images])
