"""What trains in reinforcement learning, and the frozen model from which it is not to drift far."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

from blip3o.model import Blip3oNext
from blip3o.part import Part
from blip3o.training.freezing import freeze
from blip3o.training.lora import add_lora, without_lora

AnyPart = TypeVar("AnyPart", bound=Part)


def choose_trainable(
    model: Blip3oNext, policy: str, patterns: list[str] | None, lora_rank: int | None, seed: int
) -> None:
    """Freezes all but the policy, or those of its parameters that match, or adapters that are put on it.

    Args:
        model: the composed model.
        policy: name of the part that learns, such as `ar`.
        patterns: of names of its parameters; all when None.
        lora_rank: of the adapters; None for none.
        seed: of their starting values.

    Raises:
        ValueError: if a pattern matches nothing or reaches beyond the policy, or both ways are asked for.
    """
    if lora_rank is not None:
        if patterns is not None:
            raise ValueError(f"trainable ({patterns}) and lora_rank ({lora_rank}) exclude each other; drop one.")
        add_lora(model.get_submodule(policy), lora_rank, seed)
        patterns = [f"{policy}.*lora_*"]
    names = freeze(model, [f"{policy}.*"] if patterns is None else patterns)
    if beyond := [name for name in names if not name.startswith(f"{policy}.")]:
        raise ValueError(
            f"trainable ({patterns}) matches {beyond[0]}, which is not of {policy}; only that learns from rewards "
            f"here. Patterns start with `{policy}.`."
        )


class Reference(nn.Module, Generic[AnyPart]):
    """A part as a run found it: a frozen copy, or under adapters the part itself without them.

    The copy belongs to the module that holds it, so that a resumed run has the same reference.

    Args:
        part: the policy.
        lora: whether it carries adapters.
    """

    def __init__(self, part: AnyPart, *, lora: bool) -> None:
        super().__init__()
        tokenizer = vars(part).get("text_tokenizer")
        kept = {id(tokenizer): tokenizer}  # reads text and has no weights: shared, not copied
        self.part = None if lora else copy.deepcopy(part, kept).requires_grad_(False)

    @contextmanager
    def of(self, part: AnyPart) -> Iterator[AnyPart]:
        """Within the block, the reference of `part`; no gradient is kept."""
        with torch.no_grad():
            if self.part is not None:
                yield self.part
            else:
                with without_lora(part):
                    yield part
