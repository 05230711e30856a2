"""Tensors and generators that callers of a pipeline give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.diffusion.base import Generators


def checked_generators(generator: Generators, rows: int, device: torch.device) -> Generators:
    """`generator` itself, or the list of its members, one an image.

    Args:
        generator: what was given.
        rows: images.
        device: where the model is.

    Raises:
        ValueError: if they are not as many as the images, no generators, or on another device than the CPU or `device`.
    """
    if generator is None:
        return None
    several = list(generator) if isinstance(generator, Sequence) else [generator]
    if isinstance(generator, Sequence) and len(several) != rows:
        raise ValueError(f"generator holds {len(several)} generators for {rows} images; give one, or one an image.")
    if len({one.device.type for one in several if isinstance(one, torch.Generator)}) > 1:
        raise ValueError("generator holds generators on several devices; create all of them on one.")
    for one in several:
        if not isinstance(one, torch.Generator):
            raise ValueError(
                f"generator ({one!r}) must be a torch.Generator or a list of them; pass "
                "torch.Generator().manual_seed(0)."
            )
        if one.device.type not in ("cpu", device.type):
            raise ValueError(
                f"generator is on {one.device}, the model on {device}; create it on the CPU or on {device.type}."
            )
    return several if isinstance(generator, Sequence) else generator


def checked_latents(latents: Tensor, rows: int) -> Tensor:
    """`latents` themselves; the diffusion head checks their channels and sides.

    Args:
        latents: what was given.
        rows: images.

    Raises:
        ValueError: if they are no floating tensor (rows, c, h, w).
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point() or latents.ndim != 4:
        told = f"{latents.dtype}, {tuple(latents.shape)}" if isinstance(latents, Tensor) else repr(latents)
        raise ValueError(f"latents ({told}) must be a floating tensor (images, c, h, w); leave it out to draw it.")
    if len(latents) != rows:
        raise ValueError(f"latents holds {len(latents)} rows for {rows} images; give one an image.")
    return latents
