"""Gradient checkpointing: blocks whose activations are computed again in the backward pass, in place of being kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Context = Callable[[], AbstractContextManager[Any]]
"""Makes a context anew whenever it is called."""


def recomputed(block: Callable[..., Any], *args: Any) -> Any:
    """`block(*args)`, of which only the arguments are kept for the backward pass."""
    return checkpoint(block, *args, use_reentrant=False, context_fn=same_kernels)


def same_kernels(*more: Context) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a block's two passes, torch's `context_fn`: the second has the attention kernels of the first.

    The backward pass may run where other kernels are chosen (`blip3o.training.attention`), which keep other tensors.

    Args:
        more: what else the second pass needs.
    """
    return nullcontext(), _Together(*_kernels_now(), *more)


class _Together(AbstractContextManager[None]):
    """Several contexts as one that can be entered again."""

    def __init__(self, *contexts: Context) -> None:
        self._contexts = contexts
        self._entered = ExitStack()

    def __enter__(self) -> None:
        self._entered = ExitStack()
        for context in self._contexts:
            self._entered.enter_context(context())

    def __exit__(self, *raised: Any) -> None:
        self._entered.close()


def _kernels_now() -> list[Context]:
    """What chooses the attention kernels that are allowed now; nothing where all are."""
    allowed = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    return [] if all(allowed.values()) else [partial(sdpa_kernel, [one for one, is_on in allowed.items() if is_on])]
