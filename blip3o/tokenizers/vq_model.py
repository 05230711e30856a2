"""A tokenizer over diffusers' VQModel, the convolutional VQ autoencoder of latent diffusion and VQGAN."""

from __future__ import annotations

from inspect import signature
from typing import Any, Self

import torch
from diffusers import VQModel
from einops import rearrange
from torch import Tensor

from blip3o.loading import check_keys, check_loading_info
from blip3o.structures import ImageTokens
from blip3o.tokenizers.base import TrainableTokenizer
from blip3o.tokenizers.quantizers.base import check_least


class DiffusersVQ(TrainableTokenizer):
    """Encoder, codebook and decoder of `diffusers.VQModel` (arXiv 2012.09841, 2112.10752).

    Args:
        config: arguments of `diffusers.VQModel`.
        image_size: side in pixels of the square images; the config's `sample_size` when None.
        commitment_weight: weight of the term that pulls vectors to their codes; the term that pulls codes has 1.

    Raises:
        ValueError: if the config holds unknown keys, its stride does not divide the image size, or the commitment is
            negative.
    """

    decodes_to = "pixels"

    def __init__(
        self, config: dict[str, Any], *, image_size: int | None = None, commitment_weight: float = 0.25
    ) -> None:
        super().__init__()
        check_keys("config", config, signature(VQModel.__init__).parameters, "VQModel")
        self.vq = VQModel.from_config(config)
        self._image_size = int(self.vq.config.sample_size if image_size is None else image_size)
        self.stride = 2 ** (len(self.vq.config.block_out_channels) - 1)
        if self._image_size < self.stride or self._image_size % self.stride:
            raise ValueError(
                f"image_size ({self._image_size}) must be a multiple of {self.stride}, the pixels a code stands for."
            )
        check_least(0, commitment_weight=commitment_weight)
        self.commitment_weight = commitment_weight

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        subfolder: str | None = None,
        image_size: int | None = None,
        commitment_weight: float = 0.25,
    ) -> Self:
        """From a diffusers folder or hub id; OSError where there is none, ValueError if its weights do not fit."""
        vq, info = VQModel.from_pretrained(name_or_path, subfolder=subfolder, output_loading_info=True)
        check_loading_info(info, name_or_path)
        config = {key: value for key, value in dict(vq.config).items() if not key.startswith("_")}
        tokenizer = cls(config, image_size=image_size, commitment_weight=commitment_weight)
        tokenizer.vq = vq
        return tokenizer

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.vq.config.num_vq_embeddings)

    @property
    def feature_dim(self) -> int:
        """Width of a code."""
        return int(self.vq.quantize.vq_embed_dim)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""
        return self._image_size

    @property
    def grid_size(self) -> int:
        """Codes along each side."""
        return self._image_size // self.stride

    @property
    def continuous_dim(self) -> int:
        """Width of the encoder's vectors: a code's."""
        return self.feature_dim

    def continuous_features(self, images: Tensor) -> Tensor:
        """The encoder's vectors (B, N, D), which are quantised, of images (B, 3, H, W) in [-1, 1]."""
        self.check_images(images)
        return rearrange(self.vq.encode(images).latents, "b d h w -> b (h w) d")

    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens: the nearest codes, compared in float32.

        The loss is VQ-VAE's; diffusers' own puts the commitment weight on the other term.
        """
        self.num_tokens(scale)
        vectors = self.continuous_features(images)
        with torch.autocast(vectors.device.type, enabled=False):
            exact, table = vectors.float(), self.vq.quantize.embedding.weight.float()
            ids = torch.cdist(exact.detach(), table.detach()[None]).argmin(-1)
            codes = table[ids]
            loss = (codes - exact.detach()).square().mean()
            loss = loss + self.commitment_weight * (exact - codes.detach()).square().mean()
            features = (exact + (codes - exact).detach()).to(vectors.dtype)
        return ImageTokens(ids=ids, features=features, grid=self.token_grid(), loss=loss)

    def embed(self, ids: Tensor) -> Tensor:
        """Codes (B, N, D) of ids (B, N)."""
        self.check_ids(ids)
        return self.vq.quantize.embedding(ids)

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] from ids (B, N)."""
        self.check_ids(ids, self.num_tokens())
        return self.decode_features(self.embed(ids)).clamp(-1, 1)

    def decode_features(self, features: Tensor) -> Tensor:
        """Images (B, 3, H, W) from features (B, N, D); not clamped, differentiable, for training."""
        grid = rearrange(features, "b (h w) d -> b d h w", h=self.grid_size)
        # VQModel.decode would look codes up in its own way where `lookup_from_codebook` is set.
        beside = grid if self.vq.config.norm_type == "spatial" else None
        return self.vq.decoder(self.vq.post_quant_conv(grid), beside)

    def reads(self, images: Tensor) -> Tensor:
        """What is reconstructed: the images (B, 3, H, W) themselves."""
        return images
