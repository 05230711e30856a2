"""SANA's linear diffusion transformer (arXiv 2410.10629), diffusers' `SanaTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning


class Sana(DiffusersDenoiser):
    """Wraps diffusers' SANA; the condition takes the place of its caption embeddings.

    Args:
        config: arguments of `diffusers.SanaTransformer2DModel`.
        attention: kernel of the cross-attention; see `DiffusersDenoiser`. That among the latents is linear.
        cond_grid: see `DiffusersDenoiser`.
    """

    library = SanaTransformer2DModel

    @property
    def cond_dim(self) -> int:
        """Width of the caption embeddings."""
        return int(self.transformer.config.caption_channels)

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """All of them."""
        return list(self.transformer.transformer_blocks)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts the velocity (B, c, h, w); SANA counts time in thousandths of the noise level."""
        return self.run(
            conditioning.mask,
            hidden_states=latents,
            encoder_hidden_states=self.placed(conditioning),
            encoder_attention_mask=conditioning.mask,
            timestep=sigma * 1000,
        )
