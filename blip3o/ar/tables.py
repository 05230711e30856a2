"""The tables of a causal LM that grow with its vocabulary: input embeddings, output embeddings, the head's bias."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blip3o.ar.vocabulary import ImageVocabulary


def head_of(lm: PreTrainedModel) -> nn.Linear:
    """The linear layer that turns hidden states into logits."""
    head = lm.get_output_embeddings()
    assert isinstance(head, nn.Linear), "a causal LM has a linear head"
    return head


def extend_tables(lm: PreTrainedModel, vocabulary: ImageVocabulary, rows: int, codebook: Tensor | None) -> None:
    """Resizes the tables; every row after the text starts at the mean of the text's rows, taken in float32.

    Args:
        lm: whose tables.
        vocabulary: id ranges.
        rows: of the tables, at least the vocabulary's size.
        codebook: (num_codes, D) starting values of the image rows of both tables, used where D is their width.
    """
    lm.resize_token_embeddings(rows, mean_resizing=False)
    head = head_of(lm)
    tables = {id(table): table for table in (lm.get_input_embeddings().weight, head.weight)}
    biases = [] if head.bias is None else [head.bias]
    with torch.no_grad():
        for table in (*tables.values(), *biases):
            if table.is_meta:
                continue
            table[vocabulary.text_size :] = table[: vocabulary.text_size].float().mean(0).to(table.dtype)
            if codebook is not None and table.ndim == 2 and codebook.shape[-1] == table.shape[1]:
                table[vocabulary.first_code : vocabulary.size] = codebook.to(table)


def tied_names(lm: PreTrainedModel) -> tuple[str, str] | None:
    """Names of input and output embeddings where the config says that they are one table, None where it does not."""
    if not getattr(lm.config.get_text_config(), "tie_word_embeddings", False):
        return None
    names = {id(module): name for name, module in lm.named_modules()}
    return f"{names[id(lm.get_input_embeddings())]}.weight", f"{names[id(lm.get_output_embeddings())]}.weight"


def share_tied(lm: PreTrainedModel, state: MutableMapping[str, Tensor], prefix: str) -> None:
    """Lets a state that stores a tied table once hold it under both names, as the model does.

    Args:
        lm: whose state.
        state: tensors by name; the one that lacks is added.
        prefix: what stands before the model's own names in `state`.

    Raises:
        ValueError: if the head is tied, but the state holds two different tables.
    """
    if (tied := tied_names(lm)) is None:
        return
    first, second = (prefix + name for name in tied)
    for name, other in ((first, second), (second, first)):
        if name not in state and other in state:
            state[name] = state[other]
    if first in state and state[first] is not state[second] and not torch.equal(state[first], state[second]):
        raise ValueError(f"{first} and {second} differ, but tie_word_embeddings says they are one; set it to false.")


def tie_again(lm: PreTrainedModel) -> None:
    """Makes a tied head one table again, which `load_state_dict(assign=True)` takes apart."""
    if tied_names(lm) is not None:
        head_of(lm).weight = lm.get_input_embeddings().weight
