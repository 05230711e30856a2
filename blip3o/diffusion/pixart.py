"""PixArt's diffusion transformer (arXiv 2310.00426), diffusers' `PixArtTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning

PIXELS_PER_LATENT = 8
"""Pixels along each side of a latent position in the autoencoder of the released PixArt-alpha."""


class PixArt(DiffusersDenoiser):
    """Wraps diffusers' PixArt-alpha and -Sigma; the condition takes the place of their caption embeddings.

    A network with twice as many output as input channels also predicts a variance, which no objective here uses: the
    second half of its channels is dropped. A network that is told the picture's size (that of 128 latents a side, and
    any with `use_additional_conditions`) is told 8 pixels a latent position. The released weights predict noise; they
    must be fine-tuned for another objective.

    Args:
        config: arguments of `diffusers.PixArtTransformer2DModel`.
        attention: see `DiffusersDenoiser`.
        cond_grid: see `DiffusersDenoiser`.
    """

    library = PixArtTransformer2DModel
    output_ratios = (1, 2)

    @property
    def cond_dim(self) -> int:
        """Width of the caption embeddings."""
        config = self.transformer.config
        return int(config.cross_attention_dim if config.caption_channels is None else config.caption_channels)

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """All of them."""
        return list(self.transformer.transformer_blocks)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts (B, c, h, w); PixArt counts time in thousandths of the noise level."""
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            height, width = latents.shape[2:]
            pixels = torch.tensor([[height, width]], device=latents.device, dtype=torch.float32) * PIXELS_PER_LATENT
            size["resolution"] = pixels.expand(len(latents), 2)
            size["aspect_ratio"] = pixels.new_full((len(latents), 1), height / width)
        prediction = self.run(
            conditioning.mask,
            hidden_states=latents,
            encoder_hidden_states=self.placed(conditioning),
            encoder_attention_mask=conditioning.mask,
            timestep=sigma * 1000,
            added_cond_kwargs=size,
        )
        return prediction[:, : self.latent_channels]
