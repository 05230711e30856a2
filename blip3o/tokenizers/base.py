"""The contract of the tokenizer family."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from blip3o.part import Part
from blip3o.structures import ImageTokens


class ImageTokenizer(Part):
    """Maps images to discrete tokens on a grid, and tokens back.

    Attributes:
        decodes_to: what `decode` returns, `"pixels"` in [-1, 1] or `"features"`.
    """

    decodes_to: Literal["pixels", "features"]

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of different ids."""

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width D of a token's feature."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""

    @property
    @abstractmethod
    def grid_size(self) -> int:
        """Tokens along each side of the grid at scale 1."""

    @property
    def num_scales(self) -> int:
        """Number of pool scales it encodes at."""
        return 1

    @property
    def continuous_dim(self) -> int | None:
        """Width F of the continuous features it reads tokens from, None where it gives none."""
        return None

    def continuous_features(self, images: Tensor) -> Tensor:
        """What is quantised at scale 1, (B, N, F), of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: if this tokenizer gives none.
        """
        raise ValueError(f"{type(self).__name__} gives no continuous features; use TATok, or the tokens themselves.")

    def num_tokens(self, scale: int = 1) -> int:
        """Tokens an image at a pool scale.

        Raises:
            ValueError: if the tokenizer has no such scale.
        """
        if not 1 <= scale <= self.num_scales:
            raise ValueError(f"scale ({scale}) must lie in 1..{self.num_scales} for {type(self).__name__}.")
        return (self.grid_size // scale) ** 2

    @abstractmethod
    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens: ids (B, N) and quantised features (B, N, D)."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Features (B, N, D) of ids (B, N); equal to the quantised features that encoding gave with them."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """What `decodes_to` says, from ids (B, N) in raster order: pixels (B, 3, H, W) or features (B, N, F)."""

    def check_images(self, images: Tensor, channels: int = 3) -> None:
        """Raises a ValueError unless `images` is (B, channels, image_size, image_size)."""
        if images.ndim != 4 or images.shape[1:] != (channels, self.image_size, self.image_size):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; {type(self).__name__} takes (B, {channels}, "
                f"{self.image_size}, {self.image_size}): resize them, or build the tokenizer with that image_size."
            )

    def check_ids(self, ids: Tensor, num_tokens: int | None = None) -> None:
        """Raises a ValueError unless `ids` is (B, N) within the codebook, N being `num_tokens` where it is given."""
        fits = ids.ndim == 2 and num_tokens in (None, ids.shape[1])
        if not fits or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size):
            values = f"{int(ids.min())}..{int(ids.max())}" if ids.numel() else "none"
            raise ValueError(
                f"ids has shape {tuple(ids.shape)} and values {values}; they must be (B, {num_tokens or 'N'}) "
                f"in 0..{self.codebook_size - 1}."
            )
