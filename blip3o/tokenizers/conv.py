"""A small trainable tokenizer: patches, convolutional blocks, a quantizer, and the way back."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from blip3o.structures import ImageTokens
from blip3o.tokenizers.blocks import conv_stack
from blip3o.tokenizers.quantized import QuantizedTokenizer
from blip3o.tokenizers.quantizers import Quantizer


class ConvTokenizer(QuantizedTokenizer):
    """Encodes patches with ConvNeXt-style blocks, quantises each, and decodes with the same kind of blocks.

    Nothing in it depends on the absolute position or on other patches' statistics (norms act per position, borders
    are replicated), so the same object one patch further gets the same ids.

    Args:
        quantizer: snaps the encoder's vectors to codes.
        image_size: side in pixels of the square images.
        patch_size: side of the patch that becomes one token, in pixels, or in latent positions where there is a codec.
        codec: a trained autoencoder, such as `blip3o.diffusion.DCAE`, whose latents are tokenised instead of pixels.
            It needs `encode`, `decode`, `latent_channels` and `spatial_factor`, and stays as it is.
        width: channels of the blocks.
        encoder_depth: blocks before the quantizer; each sees one patch further in every direction.
        decoder_depth: blocks after it.

    Raises:
        ValueError: if the image has no size, or the patches do not tile it or its latents.
    """

    decodes_to = "pixels"
    codec: Any

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        image_size: int = 64,
        patch_size: int = 8,
        codec: nn.Module | None = None,
        width: int = 128,
        encoder_depth: int = 2,
        decoder_depth: int = 2,
    ) -> None:
        super().__init__()
        latents: Any = codec
        factor = 1 if codec is None else latents.spatial_factor
        if image_size < 1:
            raise ValueError(f"image_size ({image_size}) must be at least 1.")
        if patch_size < 1 or image_size % (patch_size * factor):
            raise ValueError(f"patch_size ({patch_size}) must divide image_size ({image_size}) over {factor}.")
        self._image_size = image_size
        self._grid_size = image_size // (patch_size * factor)
        self.patch_size = patch_size
        self.codec = codec.requires_grad_(False).eval() if codec is not None else None
        patch_dim = (3 if codec is None else latents.latent_channels) * patch_size**2
        self.quantizer = quantizer
        self.encoder = conv_stack(patch_dim, width, encoder_depth, quantizer.dim)
        self.decoder = conv_stack(quantizer.dim, width, decoder_depth, patch_dim)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""
        return self._image_size

    @property
    def grid_size(self) -> int:
        """Tokens along each side."""
        return self._grid_size

    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens."""
        self.check_images(images)
        self.num_tokens(scale)
        p = self.patch_size
        patches = rearrange(self.reads(images), "b c (h p) (w q) -> b (c p q) h w", p=p, q=p)
        vectors = rearrange(self.encoder(patches), "b d h w -> b (h w) d")
        features, ids, loss = self.quantizer.quantize(vectors)
        return ImageTokens(ids=ids, features=features, grid=self.token_grid(), loss=loss)

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] from ids (B, N)."""
        self.check_ids(ids, self.num_tokens())
        decoded = self.decode_features(self.embed(ids))
        return (decoded if self.codec is None else self.codec.decode(decoded)).clamp(-1, 1)

    def decode_features(self, features: Tensor) -> Tensor:
        """What `reads` gave, from features (B, N, D); not clamped, differentiable, for training."""
        grid = rearrange(self.cells(features), "b (h w) d -> b d h w", h=self.grid_size)
        return rearrange(self.decoder(grid), "b (c p q) h w -> b c (h p) (w q)", p=self.patch_size, q=self.patch_size)

    def reads(self, images: Tensor) -> Tensor:
        """What is tokenised and reconstructed: the images (B, 3, H, W) themselves, or a codec's latents of them."""
        return images if self.codec is None else self.codec.encode(images)
