"""What trains in reinforcement learning, and the frozen model from which it is not to drift far."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from blip3o.ar.base import ARBackbone
from blip3o.model import Blip3oNext
from blip3o.training.freezing import freeze
from blip3o.training.lora import add_lora, without_lora


def choose_trainable(model: Blip3oNext, patterns: list[str] | None, lora_rank: int | None, seed: int) -> None:
    """Freezes all but the AR model, or those of its parameters that match, or adapters that are put on it.

    Raises:
        ValueError: if a pattern matches nothing or reaches beyond the AR model, or both ways are asked for.
    """
    if lora_rank is not None:
        if patterns is not None:
            raise ValueError(f"trainable ({patterns}) and lora_rank ({lora_rank}) exclude each other; drop one.")
        add_lora(model.ar, lora_rank, seed)
        patterns = ["ar.*lora_*"]
    names = freeze(model, ["ar.*"] if patterns is None else patterns)
    if beyond := [name for name in names if not name.startswith("ar.")]:
        raise ValueError(
            f"trainable ({patterns}) matches {beyond[0]}, which is not of the AR model; only that learns from rewards "
            "here, the rest renders. Patterns start with `ar.`."
        )


class Reference(nn.Module):
    """The AR model as a run found it: a frozen copy, or under adapters the model itself without them.

    The copy is part of the module that holds it, so that a resumed run has the same reference.

    Args:
        ar: the backbone.
        lora: whether it carries adapters.
    """

    def __init__(self, ar: ARBackbone, *, lora: bool) -> None:
        super().__init__()
        tokenizer = vars(ar).get("text_tokenizer")
        kept = {id(tokenizer): tokenizer}  # reads text and has no weights: shared, not copied
        self.ar = None if lora else copy.deepcopy(ar, kept).requires_grad_(False)

    @contextmanager
    def backbone(self, ar: ARBackbone) -> Iterator[ARBackbone]:
        """Within the block, the reference; no gradient is kept."""
        with torch.no_grad():
            if self.ar is not None:
                yield self.ar
            else:
                with without_lora(ar):
                    yield ar
