"""One token a row through a decoder: by the model's own forward pass, or leaner where the architecture is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

States = tuple[Tensor, ...]
"""Hidden states (B, T, H): the input embeddings, those after every layer but the last, and the last past the norm."""


class Step(ABC):
    """A decoder that has read its prompts and goes on token by token, rows B."""

    @abstractmethod
    def advance(self, ids: Tensor) -> tuple[Tensor, States | None]:
        """Reads the next token of every row.

        Args:
            ids: (B,) int64 over the extended vocabulary.

        Returns:
            The last hidden states (B, H), and where layers are kept, the states (B, 1, H) of all of them.
        """

    @abstractmethod
    def scores(self, hidden: Tensor) -> Tensor:
        """The head's products (B, V) over the image ids, of last hidden states (B, H); no factor and no cap yet."""


class LibraryStep(Step):
    """The model's own forward pass.

    Args:
        run: the decoder without its head, called with inputs, mask and cache.
        head: gives products over the image ids.
        cache: what it remembers of the prompts.
        attention_mask: (B, T) bool, of the prompts.
        position: position ids of the last token, (..., B, 1).
        keep_layers: whether the states of all layers are given.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        head: Callable[[Tensor], Tensor],
        cache: DynamicCache,
        attention_mask: Tensor,
        position: Tensor,
        keep_layers: bool,
    ) -> None:
        self._run = run
        self._head = head
        self._cache = cache
        self._mask = attention_mask
        self._one = attention_mask.new_ones((len(attention_mask), 1))
        self._position = position
        self._keep_layers = keep_layers

    def advance(self, ids: Tensor) -> tuple[Tensor, States | None]:
        """Reads the next token of every row."""
        self._mask = torch.cat([self._mask, self._one], dim=1)
        self._position = self._position + 1
        inputs = {"input_ids": ids[:, None], "position_ids": self._position}
        output = self._run(inputs, self._mask, self._cache, keep_layers=self._keep_layers)
        return output.last_hidden_state[:, -1], output.hidden_states if self._keep_layers else None

    def scores(self, hidden: Tensor) -> Tensor:
        """Products over the image ids."""
        return self._head(hidden)


def stack_layers(
    every: States | None, layers: Sequence[int] | None, rows: int | None = None, start: int | None = None
) -> Tensor | None:
    """Hidden states (B, K, T, H) of the layers asked for, at the first `rows` and the positions from `start` on.

    Raises:
        ValueError: if the model has no such layer.
    """
    if not layers:
        return None
    # One more than there are layers: the input embeddings come first, and the last ones are past the final norm.
    assert every is not None, "they were asked for"
    if strange := [layer for layer in layers if not -len(every) <= layer < len(every)]:
        raise ValueError(f"layers names {strange}; the model has 0..{len(every) - 1}, or -1 and so on from the end.")
    return torch.stack([every[layer][:rows, start:] for layer in layers], dim=1)
