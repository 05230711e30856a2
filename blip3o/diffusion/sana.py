"""SANA's linear diffusion transformer (arXiv 2410.10629), diffusers' `SanaTransformer2DModel`."""

from __future__ import annotations

from inspect import signature
from typing import Any, Self

from diffusers import SanaTransformer2DModel
from torch import Tensor

from blip3o.diffusion.base import Denoiser
from blip3o.loading import check_keys, check_loading_info
from blip3o.structures import Conditioning


class Sana(Denoiser):
    """Wraps diffusers' SANA; the condition takes the place of its caption embeddings.

    Args:
        config: arguments of `diffusers.SanaTransformer2DModel`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        check_keys("config", config, signature(SanaTransformer2DModel.__init__).parameters, "SanaTransformer2DModel")
        self.transformer = SanaTransformer2DModel.from_config(config)

    @classmethod
    def from_pretrained(cls, name_or_path: str, subfolder: str | None = None) -> Self:
        """From a diffusers folder or hub id; OSError where there is none, ValueError if its weights do not fit."""
        transformer, info = SanaTransformer2DModel.from_pretrained(
            name_or_path, subfolder=subfolder, output_loading_info=True
        )
        check_loading_info(info, name_or_path)
        denoiser = cls({k: v for k, v in dict(transformer.config).items() if not k.startswith("_")})
        denoiser.transformer = transformer
        return denoiser

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.transformer.config.in_channels)

    @property
    def cond_dim(self) -> int:
        """Width of the caption embeddings."""
        return int(self.transformer.config.caption_channels)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts the velocity (B, c, h, w); SANA counts time in thousandths of the noise level."""
        return self.transformer(
            hidden_states=latents,
            encoder_hidden_states=conditioning.embeds,
            encoder_attention_mask=conditioning.mask,
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
