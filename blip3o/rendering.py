"""The second half of a generation: from image tokens that the AR model wrote to latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blip3o.diffusion.base import DiffusionHead, Generators
from blip3o.diffusion.guidance import Interval
from blip3o.structures import Generated, Rendered

if TYPE_CHECKING:
    from blip3o.model import Blip3oNext


@torch.no_grad()
def render(
    model: Blip3oNext,
    tokens: Generated,
    *,
    num_inference_steps: int = 30,
    guidance_scale: float = 2.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    references: Tensor | None = None,
    image_guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    guidance_interval: Interval | None = None,
    step_cache: float | None = None,
) -> Rendered:
    """Renders what `Blip3oNext.write` gave; the two together are `Blip3oNext.generate`, with its arguments.

    The AR model has no part in it, so another batch may be written meanwhile.

    Args:
        model: the composed model that wrote.
        tokens: B rows.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance of the diffusion head; 1 turns it off.
        generator: source of the noise, one or one a row: those that the tokens were drawn from, as they are now.
        latents: initial noise (B, c, h, w).
        references: (B, R, 3, H, W) in [-1, 1], reference images at the diffusion head's size.
        image_guidance_scale: guidance by the references.
        size: height and width in pixels; the head's own when None.
        guidance_interval: noise levels (low, high) that are guided; all when None.
        step_cache: how much a step's beginning may differ from the last full one to skip blocks; 0 or None skips none.

    Raises:
        ValueError: if the diffusion head can not do what is asked for.
    """
    conditioning, negative = model.condition(tokens, references)
    settings = {
        "image_guidance_scale": image_guidance_scale,
        "size": size,
        "guidance_interval": guidance_interval,
        "step_cache": step_cache or None,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if model.diffusion.reads == "tokens":
        given["pictures"] = model.tokenizer.decode(tokens.ids)
    drawn = model.diffusion.sample(
        conditioning,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        negative=negative,
        generator=generator,
        latents=latents,
        references=seen_references(model.diffusion, references),
        **given,
    )
    return Rendered(tokens, conditioning, drawn)


def seen_references(head: DiffusionHead, references: Tensor | None) -> Tensor | None:
    """The references that a diffusion head takes for itself: none where only the bridges read them."""
    return references if getattr(head, "reference", None) is not None else None
