"""Low-rank adapters on one part of a model, by peft: the base stays as it is and serves as the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def add_lora(part: nn.Module, rank: int, seed: int = 0) -> None:
    """Puts an adapter on every linear layer of `part`, in place; it changes nothing at first.

    An AR model's output head gets none.

    Args:
        part: of a model.
        rank: of the adapters; their product is scaled by 2.
        seed: of their starting values.

    Raises:
        ValueError: if `rank` is below 1.
        ImportError: without peft.
    """
    if rank < 1:
        raise ValueError(f"lora_rank ({rank}) must be at least 1; leave it out to train the weights themselves.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora_rank needs peft; install the extra with `pip install 'blip3o[lora]'`.") from error
    head = getattr(part, "head", None)
    names = [name for name, layer in part.named_modules() if isinstance(layer, nn.Linear) and layer.weight is not head]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), part)


@contextmanager
def without_lora(part: nn.Module) -> Iterator[None]:
    """Within the block, `part` is what it was before the adapters."""
    layers = [layer for _, layer in _adapted(part)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_lora(part: nn.Module) -> None:
    """Adds the adapters to the weights and takes them away, so that `part` has its own names again."""
    for name, layer in _adapted(part):
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(part.get_submodule(parent), own, layer.get_base_layer())


def _adapted(part: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in part.named_modules() if isinstance(layer, BaseTunerLayer)]
