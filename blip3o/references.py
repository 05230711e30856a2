"""Reference images on their way into a model: tokens, features in the prompt, latents beside the condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from blip3o.ar.base import ARBackbone
from blip3o.bridge.base import Bridge
from blip3o.diffusion.base import DiffusionHead
from blip3o.structures import ARStates
from blip3o.tokenizers.base import ImageTokenizer


@dataclass(frozen=True)
class Told:
    """What the AR model is told of reference images.

    Attributes:
        ids: (B, R N) codes, or the ids that stand for the images of every row; None without references.
        features: (B, R N, F) continuous features, None where they are not asked for.
        images: (B, R, 3, h, w) in [-1, 1], None unless the AR model reads images itself.
    """

    ids: Tensor | Sequence[int] | None = None
    features: Tensor | None = None
    images: Tensor | None = None


@torch.no_grad()
def read_references(tokenizer: ImageTokenizer, ar: ARBackbone, images: Tensor | None, *, with_features: bool) -> Told:
    """What the tokenizer reads from reference images (B, R, 3, h, w) in [-1, 1], unless the AR model reads them itself.

    Nothing where there are none.
    """
    if images is None:
        return Told()
    if ar.reads_images:
        return Told(ar.image_ids(images.shape[1], *images.shape[-2:]), images=images)
    flat = rearrange(images, "b r c h w -> (b r) c h w")
    with torch.autocast(flat.device.type, enabled=False):
        ids = rearrange(tokenizer.encode(flat).ids, "(b r) n -> b (r n)", b=len(images))
        if not with_features:
            return Told(ids)
        features = rearrange(tokenizer.continuous_features(flat), "(b r) n f -> b (r n) f", b=len(images))
    return Told(ids, features)


def told_embeds(
    ar: ARBackbone, projection: Bridge | None, input_ids: Tensor, reference_mask: Tensor, told: Told
) -> Tensor | None:
    """Input embeddings (B, T, H) whose reference positions hold projected features; None where there are none."""
    if told.features is None or projection is None:
        return None
    projected = projection(ARStates(told.features)).embeds
    embeds = ar.embed(input_ids)
    return embeds.masked_scatter(reference_mask[..., None].to(embeds.device), projected.to(embeds.dtype))


def projected_latents(
    diffusion: DiffusionHead, projection: Bridge, references: Tensor, hidden: Tensor | None = None
) -> Tensor:
    """Latents of reference images (B, R, 3, H, W) in [-1, 1] as condition positions (B, R h w, C).

    Those of the rows of `hidden` (B,) bool are zeros, which the released code, too, takes for no references.
    """
    with torch.no_grad(), torch.autocast(references.device.type, enabled=False):
        latents = diffusion.encode(rearrange(references, "b r c h w -> (b r) c h w"))
    positions = rearrange(latents, "(b r) c h w -> b (r h w) c", b=len(references), r=references.shape[1])
    projected = projection(ARStates(positions)).embeds
    return projected if hidden is None else projected.masked_fill(hidden[:, None, None], 0.0)
