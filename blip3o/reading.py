"""Gathering what a bridge reads: from a pass over whole sequences, from decoded tokens, or from prompts alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from blip3o.ar.base import ARBackbone
from blip3o.bridge.base import Bridge
from blip3o.structures import AROutput, ARStates, Generated
from blip3o.tokenizers.base import ImageTokenizer


@torch.no_grad()
def image_codes(tokenizer: ImageTokenizer, images: Tensor | None, image_ids: Tensor | None) -> Tensor:
    """The codes (B, N) of images (B, 3, h, w), or those that are known already.

    Raises:
        ValueError: if neither is given, or the codes are not as many as the tokenizer writes.
    """
    if image_ids is not None:
        if image_ids.shape[1:] != (tokenizer.num_tokens(),):
            raise ValueError(
                f"image_ids has shape {tuple(image_ids.shape)}; {type(tokenizer).__name__} writes (B, "
                f"{tokenizer.num_tokens()}): encode the images again, by this tokenizer."
            )
        return image_ids
    if images is None:
        raise ValueError("images and image_ids are both None; give one: it is what the AR model learns to write.")
    with torch.autocast(images.device.type, enabled=False):  # in the tokenizer's own precision: they are the target
        return tokenizer.encode(images).ids


def sequence_states(
    bridge: Bridge, tokenizer: ImageTokenizer, output: AROutput, condition_mask: Tensor, image_ids: Tensor
) -> ARStates:
    """What it reads where the AR model has read whole sequences, image tokens and all, as in training.

    Args:
        bridge: reads `image_tokens` or `token_embeds`.
        tokenizer: gives the features of tokens.
        output: of the AR model, with the layers that the bridge asks for.
        condition_mask: (B, T) bool, True at the scale token and the image tokens: a contiguous block that ends at the
            same distance from the right in every row.
        image_ids: (B, N) codes of the images.
    """
    if bridge.reads == "token_embeds":
        return ARStates(_features(bridge, tokenizer, image_ids))
    at = condition_mask[0]
    return ARStates(output.hidden[:, at], layers=None if output.layers is None else output.layers[:, :, at])


def decoded_states(bridge: Bridge, tokenizer: ImageTokenizer, tokens: Generated) -> ARStates:
    """What it reads of what `Blip3oNext.write` gave."""
    if bridge.reads == "token_embeds":
        return ARStates(_features(bridge, tokenizer, tokens.ids))
    return ARStates(tokens.hidden, tokens.mask, tokens.layers)


def prompt_states(
    ar: ARBackbone,
    bridge: Bridge,
    input_ids: Tensor,
    attention_mask: Tensor,
    inputs_embeds: Tensor | None = None,
    images: Tensor | None = None,
    packed: bool = False,
) -> ARStates:
    """States at the prompts, or at the bridge's queries after them, from one pass that decodes nothing.

    Args:
        ar: the AR model.
        bridge: reads `prompt` or `queries`.
        input_ids: (B, T) int64 left-padded prompts.
        attention_mask: (B, T) bool, False at padding.
        inputs_embeds: (B, T, H) input embeddings in place of those of the ids.
        images: (B, R, 3, h, w) in [-1, 1], reference images, for an AR model that reads them itself.
        packed: read the rows end to end, without padding.

    Returns:
        hidden (B, T, H), zero at padding, and the mask; or hidden (B, num_queries, H), which all count.
    """
    asked: dict[str, Any] = {"layers": bridge.ar_layers or None, "images": images}
    asked |= {"packed": True} if packed else {}
    if bridge.queries is None:
        output = ar(input_ids, attention_mask, inputs_embeds=inputs_embeds, **asked)
        # What stands at padding is the backbone's own affair, even infinite; an attention that weighs it with 0 must
        # not see it.
        hidden = output.hidden.masked_fill(~attention_mask[..., None], 0.0)
        layers = None if output.layers is None else output.layers.masked_fill(~attention_mask[:, None, :, None], 0.0)
        return ARStates(hidden, attention_mask, layers)
    embeds = ar.embed(input_ids) if inputs_embeds is None else inputs_embeds
    queries = repeat(bridge.queries, "n h -> b n h", b=len(input_ids)).to(embeds.dtype)
    count = queries.shape[1]
    output = ar(
        F.pad(input_ids, (0, count)),  # their embeddings are the queries
        F.pad(attention_mask, (0, count), value=True),
        inputs_embeds=torch.cat([embeds, queries], dim=1),
        **asked,
    )
    return ARStates(output.hidden[:, -count:], layers=None if output.layers is None else output.layers[:, :, -count:])


def as_generated(states: ARStates) -> Generated:
    """States at prompts or queries as the outcome of decoding no token."""
    rows = len(states.hidden)
    ids = torch.zeros((rows, 0), dtype=torch.int64, device=states.hidden.device)
    return Generated(ids, states.hidden, states.hidden.new_zeros((rows, 0)), states.mask, states.layers)


@torch.no_grad()
def _features(bridge: Bridge, tokenizer: ImageTokenizer, ids: Tensor) -> Tensor:
    """The tokenizer's features (B, N, D) of codes (B, N), in the bridge's precision."""
    with torch.autocast(ids.device.type, enabled=False):
        return tokenizer.embed(ids).to(next(bridge.parameters()).dtype)
