"""Codecs: DC-AE and KL autoencoders of diffusers, and plain pixels."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, AutoencoderKL
from einops import rearrange
from torch import Tensor

from blip3o.diffusion.base import Codec
from blip3o.diffusion.library import FromDiffusers


class DCAE(FromDiffusers, Codec):
    """Deep-compression autoencoder (DC-AE, arXiv 2410.10733), diffusers' `AutoencoderDC`.

    Args:
        config: arguments of `diffusers.AutoencoderDC`.
        scaling_factor: overrides the config's; diffusers' key `scaling_factor` when None.
        shift_factor: subtracted from raw latents before scaling.
    """

    library = AutoencoderDC

    def __init__(self, config: dict[str, Any], scaling_factor: float | None = None, shift_factor: float = 0.0) -> None:
        vae = self.build(config)
        super().__init__(vae.config.scaling_factor if scaling_factor is None else scaling_factor, shift_factor)
        self.vae = vae

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(self.vae.spatial_compression_ratio)

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to raw latents."""
        return self.vae.encode(images).latent

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents to images."""
        return self.vae.decode(latents).sample

    def enable_tiling(self) -> None:
        """As diffusers does it, by tiles of the autoencoder's own size."""
        self.vae.enable_tiling()


class KLCodec(FromDiffusers, Codec):
    """Variational autoencoder of latent diffusion (arXiv 2112.10752), diffusers' `AutoencoderKL`.

    Args:
        config: arguments of `diffusers.AutoencoderKL`; `shift_factor` and `scaling_factor` are read from it.
    """

    library = AutoencoderKL

    def __init__(self, config: dict[str, Any]) -> None:
        vae = self.build(config)
        super().__init__(vae.config.scaling_factor, vae.config.shift_factor or 0.0)
        self.vae = vae

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to raw latents: the mode of the posterior, so that encoding is deterministic."""
        return self.vae.encode(images).latent_dist.mode()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents to images."""
        return self.vae.decode(latents).sample

    def enable_tiling(self) -> None:
        """As diffusers does it, by tiles of the autoencoder's own size."""
        self.vae.enable_tiling()


class PixelCodec(Codec):
    """No autoencoder: patches of pixels are the latents.

    Args:
        patch_size: side of a patch in pixels; a latent has 3 * patch_size**2 channels.
    """

    def __init__(self, patch_size: int = 1) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size ({patch_size}) must be at least 1.")
        self.patch_size = patch_size

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return 3 * self.patch_size**2

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.patch_size

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images to patches."""
        p = self.patch_size
        return rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=p, q=p)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Patches to images."""
        p = self.patch_size
        return rearrange(latents, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p)
