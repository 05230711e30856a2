"""A cache of denoising steps: where a step begins like the last full one, most blocks are skipped.

First-block cache (`diffusers.FirstBlockCacheConfig`, after ParaAttention): if the first block changes its input as it
did at the last full step, up to a share of the mean absolute change, what the other blocks then added is added again.
The share is one number for the whole batch, so with a cache a picture depends a little on the others of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

from diffusers import CacheMixin, FirstBlockCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn

from blip3o.diffusion.base import Denoiser


def check_threshold(step_cache: object) -> None:
    """Raises a ValueError unless `step_cache` is None or a finite number of at least 0."""
    if step_cache is None:
        return
    if isinstance(step_cache, bool) or not isinstance(step_cache, Real) or not 0 <= float(step_cache) < math.inf:
        raise ValueError(f"step_cache ({step_cache!r}) must be a number of at least 0; 0 skips no blocks.")


def check_step_cache(denoiser: Denoiser, step_cache: float | None) -> None:
    """Raises a ValueError where `step_cache` is out of range, or a denoiser can skip no blocks."""
    check_threshold(step_cache)
    if step_cache and len(denoiser.cached_blocks) < 2:
        raise ValueError(
            f"step_cache ({step_cache}) needs a denoiser with blocks to skip, and this {type(denoiser).__name__} has "
            "none; leave it out."
        )


@contextmanager
def caching_steps(denoiser: Denoiser, step_cache: float | None) -> Iterator[None]:
    """Inside, calls of the denoiser are steps of one sampling, and may skip blocks; outside, it is as it was.

    Args:
        denoiser: what is called; calls with other numbers of rows are kept apart, since guidance may come and go.
        step_cache: largest share by which the first block's change may differ for the others to be skipped; 0 or None
            skips none.

    Raises:
        ValueError: if the share is out of range, or the denoiser can skip no blocks.
    """
    check_step_cache(denoiser, step_cache)
    if not step_cache:
        yield
        return
    blocks: Any = _Blocks(denoiser.cached_blocks)
    context = ExitStack()

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        context.enter_context(blocks.cache_context(f"{len(args[0])} rows"))

    def leave(*_: Any) -> None:
        context.close()

    blocks.enable_cache(FirstBlockCacheConfig(threshold=step_cache))
    handles = (denoiser.register_forward_pre_hook(enter), denoiser.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        blocks.disable_cache()


class _Blocks(nn.Module, CacheMixin):
    """Blocks of a transformer by a name that diffusers looks for; few of its transformers offer `enable_cache`."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(blocks)
        for kind in {type(block) for block in blocks}:
            try:
                TransformerBlockRegistry.get(kind)
            except ValueError:  # one that returns the next hidden states and nothing else
                TransformerBlockRegistry.register(kind, TransformerBlockMetadata(return_hidden_states_index=0))
