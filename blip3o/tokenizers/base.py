"""The contract of the tokenizer family."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from einops import reduce
from torch import Tensor, nn

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
    def tokens_per_cell(self) -> int:
        """Tokens K of each cell of the grid, which follow one another: more than one with a residual quantizer."""
        return 1

    @property
    def continuous_dim(self) -> int | None:
        """Width F of the continuous features it reads tokens from, None where it gives none."""
        return None

    def continuous_features(self, images: Tensor) -> Tensor:
        """What is quantised at scale 1, (B, N, F), one a token, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: if this tokenizer gives none.
        """
        raise ValueError(
            f"{type(self).__name__} gives no continuous features; use TATok, TimmTokenizer or DiffusersVQ, or the "
            "tokens themselves."
        )

    def num_tokens(self, scale: int = 1) -> int:
        """Tokens an image at a pool scale.

        Raises:
            ValueError: if the tokenizer has no such scale.
        """
        if not 1 <= scale <= self.num_scales:
            raise ValueError(f"scale ({scale}) must lie in 1..{self.num_scales} for {type(self).__name__}.")
        return (self.grid_size // scale) ** 2 * self.tokens_per_cell

    def token_grid(self, scale: int = 1) -> tuple[int, int]:
        """Rows and columns of the tokens at a pool scale; the tokens of a cell lie side by side."""
        return self.grid_size // scale, self.grid_size // scale * self.tokens_per_cell

    def cells(self, features: Tensor) -> Tensor:
        """Features (B, cells, D) of the grid's cells, from those of their tokens (B, N, D), which are added up."""
        k = self.tokens_per_cell
        return features if k == 1 else reduce(features, "b (c k) d -> b c d", "sum", k=k)

    @abstractmethod
    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens: ids (B, N) and quantised features (B, N, D)."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Features (B, N, D) of ids (B, N); equal to the quantised features that encoding gave with them."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """What `decodes_to` says, from ids (B, N) in raster order: pixels (B, 3, H, W) or features (B, cells, F)."""

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
        if fits and ids.is_meta:
            return  # no values to look at
        if not fits or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size):
            values = f"{int(ids.min())}..{int(ids.max())}" if ids.numel() else "none"
            raise ValueError(
                f"ids has shape {tuple(ids.shape)} and values {values}; they must be (B, {num_tokens or 'N'}) "
                f"in 0..{self.codebook_size - 1}."
            )


class TrainableTokenizer(ImageTokenizer):
    """A tokenizer that can be trained to reconstruct: what `decode_features` gives is compared with what `reads` gave.

    With pixels these are images or a codec's latents; with features, those of a frozen backbone.
    """

    @abstractmethod
    def reads(self, images: Tensor) -> Tensor:
        """What is reconstructed of images (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def decode_features(self, features: Tensor) -> Tensor:
        """A reconstruction in the shape of what `reads` gives, from features (B, N, D); not clamped, differentiable."""


def check_frozen(backbone: nn.Module, name: str) -> None:
    """Raises a ValueError if a backbone trains although its features are the targets, which it could make trivial."""
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError(
            f"the {name} trains, but its features are what is reconstructed; freeze it, as by leaving it out of the "
            "patterns of TokenizerModule's `trainable`."
        )
