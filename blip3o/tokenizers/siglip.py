"""SigLIP vision towers of transformers, of one size (SigLIP, SigLIP 2) or of any (SigLIP 2 NaFlex)."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

_MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")


def build_tower(vision: dict[str, Any]) -> PreTrainedModel:
    """A tower with fresh weights.

    Args:
        vision: arguments of `SiglipVisionConfig`; or, where `model_type` names siglip2 and there is no `image_size`, of
            `Siglip2VisionConfig`, whose tower is given square images of `num_patches` patches.

    Raises:
        ValueError: if `model_type` is no SigLIP's, or the patches make no square grid.
    """
    model_type = vision.get("model_type", "siglip_vision_model")
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"vision's model_type ({model_type!r}) must be one of {', '.join(_MODEL_TYPES)}.")
    arguments = {key: value for key, value in vision.items() if key != "model_type"}
    if model_type.startswith("siglip2") and "image_size" not in vision:
        config = Siglip2VisionConfig(**arguments)
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise ValueError(f"vision's num_patches ({config.num_patches}) must be a square number, of a square image.")
        return Siglip2VisionModel(config)
    plain = SiglipVisionConfig(**arguments)
    if plain.image_size < plain.patch_size:
        raise ValueError(f"vision's patch_size ({plain.patch_size}) exceeds its image_size ({plain.image_size}).")
    return SiglipVisionModel(plain)


def tower_grid(tower: PreTrainedModel) -> int:
    """Patches along each side of the square images that a tower is given."""
    config = tower.config
    if isinstance(tower, Siglip2VisionModel):
        return math.isqrt(int(config.num_patches))
    return int(config.image_size) // int(config.patch_size)


def tower_image_size(tower: PreTrainedModel) -> int:
    """Side in pixels of the square images that a tower is given."""
    if isinstance(tower, Siglip2VisionModel):
        return tower_grid(tower) * int(tower.config.patch_size)
    return int(tower.config.image_size)


def tower_hidden(tower: PreTrainedModel, pixels: Tensor, layer: int) -> Tensor:
    """Hidden states (B, N, F) of a layer, counted as in transformers' `hidden_states`, of images (B, 3, H, W)."""
    if isinstance(tower, Siglip2VisionModel):
        grid = tower_grid(tower)
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", h=grid, w=grid)
        output = tower(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
            spatial_shapes=torch.full((len(pixels), 2), grid, device=pixels.device),
            output_hidden_states=True,
        )
    else:
        output = tower(pixel_values=pixels, output_hidden_states=True)
    return output.hidden_states[layer]
