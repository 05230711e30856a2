"""A small trainable tokenizer: patches, convolutional blocks, a quantizer, and the way back."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from blip3o.structures import ImageTokens
from blip3o.tokenizers.base import ImageTokenizer
from blip3o.tokenizers.quantizers import Quantizer


class ConvTokenizer(ImageTokenizer):
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
        ValueError: if the patches do not tile the image or its latents.
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
        if patch_size < 1 or image_size % (patch_size * factor):
            raise ValueError(f"patch_size ({patch_size}) must divide image_size ({image_size}) over {factor}.")
        self._image_size = image_size
        self._grid_size = image_size // (patch_size * factor)
        self.patch_size = patch_size
        self.codec = codec.requires_grad_(False).eval() if codec is not None else None
        patch_dim = (3 if codec is None else latents.latent_channels) * patch_size**2
        self.quantizer = quantizer
        self.encoder = nn.Sequential(
            nn.Conv2d(patch_dim, width, 1),
            *(ConvBlock(width) for _ in range(encoder_depth)),
            ChannelNorm(width),
            nn.Conv2d(width, quantizer.dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(quantizer.dim, width, 1),
            *(ConvBlock(width) for _ in range(decoder_depth)),
            ChannelNorm(width),
            nn.Conv2d(width, patch_dim, 1),
        )

    @property
    def codebook_size(self) -> int:
        """Number of different ids."""
        return self.quantizer.codebook_size

    @property
    def feature_dim(self) -> int:
        """Width of a token's feature: a code's."""
        return self.quantizer.dim

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
        return ImageTokens(ids=ids, features=features, grid=(self.grid_size, self.grid_size), loss=loss)

    def embed(self, ids: Tensor) -> Tensor:
        """Codes (B, N, D) of ids (B, N)."""
        self.check_ids(ids)
        return self.quantizer.codes(ids)

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] from ids (B, N)."""
        self.check_ids(ids, self.num_tokens())
        decoded = self.decode_features(self.quantizer.codes(ids))
        return (decoded if self.codec is None else self.codec.decode(decoded)).clamp(-1, 1)

    def decode_features(self, features: Tensor) -> Tensor:
        """What `reads` gave, from features (B, N, D); not clamped, differentiable, for training."""
        grid = rearrange(features, "b (h w) d -> b d h w", h=self.grid_size)
        return rearrange(self.decoder(grid), "b (c p q) h w -> b c (h p) (w q)", p=self.patch_size, q=self.patch_size)

    def reads(self, images: Tensor) -> Tensor:
        """What is tokenised and reconstructed: the images (B, 3, H, W) themselves, or a codec's latents of them."""
        return images if self.codec is None else self.codec.encode(images)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each position of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises every position on its own."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """A residual block: 3x3 convolution by channel, then a two-layer perceptron at every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate", groups=width)
        self.norm = ChannelNorm(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return x + self.mlp(self.norm(self.spatial(x)))
