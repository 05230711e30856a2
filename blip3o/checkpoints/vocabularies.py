"""Weights of an AR model for one with more words: rows of its tables are matched by the names of their tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.tables import head_of
from blip3o.checkpoints.folder import describe_model


def for_vocabulary(backbone: CausalLM, state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The AR weights of a model folder with the rows that the backbone's own vocabulary asks for.

    A row goes where its token's name is. Rows of new words start at the mean of the folder's text rows, as new rows do
    wherever a vocabulary grows.

    Args:
        backbone: whose vocabulary.
        state: the AR tensors of the folder.
        folder: a model folder of ours.

    Returns:
        `state` itself where both have the same tokens.

    Raises:
        ValueError: if a token of the folder is missing in the backbone's vocabulary.
    """
    donor = describe_model(folder)[0].ar
    if not isinstance(donor, CausalLM) or (held := _names(donor)) == (own := _names(backbone)):
        return state
    wanted = {name: row for row, name in enumerate(own)}
    if lost := [name for name in held if name not in wanted]:
        raise ValueError(
            f"{folder} holds rows of {lost[:5]} ({len(lost)} tokens), which the AR model's vocabulary lacks; keep the "
            "folder's words and its tokenizer's codes, and add to the words."
        )
    places = torch.tensor([wanted[name] for name in held])
    rows = len(head_of(backbone.lm).weight)
    grown = dict(state)
    for name in _tables(backbone) & state.keys():
        old = state[name]
        table = old[: donor.text_size].float().mean(0).to(old.dtype).repeat(rows, *(1,) * (old.ndim - 1))
        table[places] = old[: len(held)]
        grown[name] = table
    return grown


def _names(backbone: CausalLM) -> list[str]:
    """Names of all tokens, in the order of their ids."""
    assert backbone.vocabulary is not None, "a model extends the vocabulary of its backbone"
    words = backbone.text_tokenizer.convert_ids_to_tokens(list(range(backbone.text_size)))
    return [*words, *backbone.vocabulary.names()]


def _tables(backbone: CausalLM) -> set[str]:
    """Names of the tensors with a row for every token."""
    head = head_of(backbone.lm)
    tables = {id(table) for table in (backbone.lm.get_input_embeddings().weight, head.weight, head.bias)}
    return {name for name, p in backbone.named_parameters(remove_duplicate=False) if id(p) in tables}
