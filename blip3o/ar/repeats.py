"""Reading a prompt once, however many images are drawn for it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import ModelOutput


def without_repeats(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The different rows of a left-padded batch.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool.

    Returns:
        ids and mask of the different rows, and for each of the B rows (B,) the number of its own among these; None in
        place of the numbers where all B differ.
    """
    both = torch.cat([attention_mask.long(), input_ids], dim=1)
    unique, source = both.unique(dim=0, return_inverse=True)
    if len(unique) == len(both):
        return input_ids, attention_mask, None
    mask, ids = unique.chunk(2, dim=1)
    return ids, mask.bool(), source


def repeat_rows(output: ModelOutput, source: Tensor) -> None:
    """Gives a decoder's output the rows `source` (B,) of its hidden states."""
    output.last_hidden_state = output.last_hidden_state[source]
    if output.hidden_states is not None:
        output.hidden_states = tuple(states[source] for states in output.hidden_states)
