"""Packing: the rows of a batch end to end as one sequence, so that no layer works on padding.

Positions start anew with every row, and no row sees another. Where all layers attend to everything before them by SDPA,
`blip3o.ar.rows_attention` takes the place of the model's attention. Otherwise transformers sees by the positions where
rows begin, and does what suits the implementation: flash-attn's variable-length kernel, or a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from blip3o.ar.cache import cache_argument, forward_arguments, new_cache, state_arguments
from blip3o.ar.rows_attention import NAME, attention_named

Run = Callable[..., Any]
"""Runs a decoder: `run(inputs, attention_mask, keep_layers=...)` gives transformers' output."""


@dataclass(frozen=True)
class EndToEnd:
    """Where the tokens of a padded batch lie once its rows are end to end.

    Attributes:
        mask: (B, T) bool, False at padding.
    """

    mask: Tensor

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every row."""
        return tuple(self.mask.sum(1).tolist())

    @property
    def positions(self) -> Tensor:
        """(1, tokens) of all rows' tokens, from 0 in each."""
        return self.pack(self.mask.cumsum(1) - 1)

    def flash_arguments(self) -> dict[str, Any]:
        """Where rows begin, as transformers' flash attention is told, which else would have to see the positions."""
        ends = torch.tensor((0, *self.lengths), device=self.mask.device).cumsum(0, dtype=torch.int32)
        longest = max(self.lengths)
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T, ...) to (1, tokens, ...)."""
        return padded[self.mask][None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, tokens, ...) to (B, T, ...), zero at padding."""
        padded = packed.new_zeros((*self.mask.shape, *packed.shape[2:]))
        padded[self.mask] = packed[0]
        return padded


def run_packed(lm: PreTrainedModel, run: Run, inputs: dict[str, Any], mask: Tensor | None, keep_layers: bool) -> Any:
    """The decoder's output of padded inputs (B, T, ...), in the same shapes, though it never saw the padding.

    Args:
        lm: the model.
        run: runs its decoder.
        inputs: `input_ids` or `inputs_embeds`; the positions are made here.
        mask: (B, T) bool, False at padding; None for no padding.
        keep_layers: whether the states of all layers are given.

    Raises:
        ValueError: if the model can not read rows end to end.
    """
    check_packs(lm)
    read = {name: one for name, one in inputs.items() if name != "position_ids"}
    if mask is None:
        given = next(iter(read.values()))
        mask = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
    rows, decoder = EndToEnd(mask), lm.get_decoder()
    packed: dict[str, Any] = {name: rows.pack(one) for name, one in read.items()}
    packed["position_ids"] = rows.positions
    implementation = str(decoder.config._attn_implementation)
    within = implementation == "sdpa" and _attends_fully(lm)
    if within:
        packed["row_lengths"] = rows.lengths
    elif "flash" in implementation and _hands_on(lm):
        packed |= rows.flash_arguments()
    with attention_named(decoder.config, NAME) if within else nullcontext():
        output = run(packed, None, keep_layers=keep_layers)
    output.last_hidden_state = rows.unpack(output.last_hidden_state)
    if keep_layers:
        output.hidden_states = tuple(rows.unpack(one) for one in output.hidden_states)
    return output


def check_packs(lm: PreTrainedModel) -> None:
    """Raises a ValueError where rows that lie end to end can not be told apart."""
    decoder, told = lm.get_decoder(), f"packing can not be used with model_type ({lm.config.model_type})"
    recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in new_cache(lm.config).layers)
    if recurrent or cache_argument(decoder) == "cache_params":
        raise ValueError(
            f"{told}, whose state would run on from one row into the next; set packing to false, or take a model that "
            "has attention alone, such as 'qwen3'."
        )
    if "position_ids" not in forward_arguments(decoder):
        raise ValueError(f"{told}, which can not be told that positions start anew; set packing to false.")


@torch.no_grad()
def try_packing(lm: PreTrainedModel) -> None:
    """Reads two short rows end to end, with the attention that the model has now.

    Raises:
        ValueError: if its states are others than apart.
    """
    decoder = lm.get_decoder()

    def run(inputs: dict[str, Any], mask: Tensor | None, keep_layers: bool) -> Any:
        named = {name: one for name, one in inputs.items() if name != "position_ids"}
        return decoder(**named, **state_arguments(decoder, None, mask, inputs["position_ids"]))

    ids = torch.tensor([[0, 0, 1, 2], [3, 2, 1, 0]], device=lm.device)
    mask = torch.tensor([[False, True, True, True], [True] * 4], device=lm.device)
    padded = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    training = [module for module in lm.modules() if module.training]
    lm.eval()
    try:
        outputs = run(padded, mask, False), run_packed(lm, run, padded, mask, False)
    finally:
        for module in training:
            module.training = True
    apart, packed = (one.last_hidden_state[mask].float() for one in outputs)
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    if not (packed - apart).abs().max() <= tolerance * apart.abs().max():
        raise ValueError(
            f"packing can not be used with model_type ({lm.config.model_type}), which reads rows that lie end to end "
            "otherwise than apart; set packing to false."
        )


def _attends_fully(lm: PreTrainedModel) -> bool:
    """Whether every layer attends to everything before and can be told where rows end."""
    return _hands_on(lm) and all(type(layer) is DynamicLayer for layer in new_cache(lm.config).layers)


def _hands_on(lm: PreTrainedModel) -> bool:
    """Whether the decoder hands on arguments that it does not know to its layers."""
    arguments = inspect.signature(type(lm.get_decoder()).forward).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in arguments)
