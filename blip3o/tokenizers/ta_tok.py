"""TA-Tok: discrete tokens from the features of a SigLIP vision tower, text-aligned before they are quantised."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from blip3o.structures import ImageTokens
from blip3o.tokenizers.base import check_frozen
from blip3o.tokenizers.quantized import QuantizedTokenizer
from blip3o.tokenizers.quantizers import SimVQ
from blip3o.tokenizers.siglip import build_tower, tower_grid, tower_hidden, tower_image_size

_NUM_DECODER_POSITIONS = 256  # Siglip2's position table, which is interpolated to any grid


class TATok(QuantizedTokenizer):
    """The published tokenizer (Tar, arXiv 2506.18898; BLIP3o-NEXT, arXiv 2510.15857).

    Vision tower, a chosen hidden layer, average pooling on the grid where a pool scale above 1 is asked for, a linear
    and tanh task layer, a linear bottleneck, SimVQ on the unit sphere. Ids are decoded to the vision tower's features:
    codes, a linear layer, a small Siglip2 encoder over single positions, then linear, tanh and linear.

    Args:
        vision: arguments of `transformers.SiglipVisionConfig`; SigLIP2 so400m patch14-384 is the published tower. With
            a `model_type` of siglip2 and without `image_size`, those of `transformers.Siglip2VisionConfig`.
        codebook_size: number of codes.
        bottleneck_dim: width of a code.
        select_layer: hidden layer that is read, counted from the end as in transformers' `hidden_states`.
        decoder_depth: layers of the decoder.
        temperature: in training, codes are drawn from softmax(cosine / temperature); None takes the nearest always.

    Raises:
        ValueError: if `vision` describes no SigLIP or no grid, or has no such layer.
    """

    decodes_to = "features"

    def __init__(
        self,
        vision: dict[str, Any],
        *,
        codebook_size: int = 65536,
        bottleneck_dim: int = 1536,
        select_layer: int = -2,
        decoder_depth: int = 3,
        temperature: float | None = 0.03,
    ) -> None:
        super().__init__()
        encoder = build_tower(vision)
        config = encoder.config
        if not -config.num_hidden_layers - 1 <= select_layer <= -1:
            raise ValueError(
                f"select_layer ({select_layer}) must lie in {-config.num_hidden_layers - 1}..-1: the tower has "
                f"{config.num_hidden_layers} layers."
            )
        width = config.hidden_size
        self.select_layer = select_layer
        self.encoder = encoder
        self.encode_task = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.bottleneck_in = nn.Linear(width, bottleneck_dim)
        self.quantizer = SimVQ(codebook_size=codebook_size, dim=bottleneck_dim, normalize=True, temperature=temperature)
        self.bottleneck_out = nn.Linear(bottleneck_dim, bottleneck_dim)
        self.decoder = Siglip2VisionModel(
            Siglip2VisionConfig(
                hidden_size=width,
                num_hidden_layers=decoder_depth,
                patch_size=1,
                num_channels=bottleneck_dim,
                num_patches=_NUM_DECODER_POSITIONS,
            )
        )
        self.decode_task = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.input_shift: Tensor
        self.input_scale: Tensor
        self.register_buffer("input_shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("input_scale", torch.ones(1, 3, 1, 1))

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""
        return tower_image_size(self.encoder)

    @property
    def grid_size(self) -> int:
        """Tokens along each side at scale 1."""
        return tower_grid(self.encoder)

    @property
    def num_scales(self) -> int:
        """Pool scales 1, 2 and 3, as many as the grid allows."""
        return min(3, self.grid_size)

    @property
    def continuous_dim(self) -> int:
        """Width of the task layer's features: the vision tower's."""
        return int(self.encoder.config.hidden_size)

    def continuous_features(self, images: Tensor) -> Tensor:
        """The task layer's features (B, N, F) of images (B, 3, H, W) in [-1, 1]."""
        return self.task_features(images)

    def task_features(self, images: Tensor, scale: int = 1) -> Tensor:
        """What is quantised: (B, N, F), of images (B, 3, H, W) in [-1, 1]."""
        self.num_tokens(scale)
        hidden = self._hidden(images)
        if scale > 1:
            grid = rearrange(hidden, "b (h w) d -> b d h w", h=self.grid_size)
            hidden = rearrange(F.avg_pool2d(grid, scale), "b d h w -> b (h w) d")
        return self.encode_task(hidden)

    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens."""
        features, ids, loss = self.quantizer.quantize(self.bottleneck_in(self.task_features(images, scale)))
        return ImageTokens(ids=ids, features=features, grid=self.token_grid(scale), loss=loss)

    def decode(self, ids: Tensor) -> Tensor:
        """Features (B, N, F) of the vision tower, from ids (B, N) of any pool scale, in raster order."""
        sides = self._sides()
        self.check_ids(ids, ids.shape[1] if ids.ndim == 2 and ids.shape[1] in sides else self.num_tokens())
        return self.decode_features(self.embed(ids))

    def decode_features(self, features: Tensor) -> Tensor:
        """Features (B, N, F) of the vision tower, from codes (B, N, D) of any pool scale."""
        rows, count, _ = features.shape
        device = features.device
        hidden = self.decoder(
            pixel_values=self.bottleneck_out(features),
            pixel_attention_mask=torch.ones(rows, count, dtype=torch.long, device=device),
            spatial_shapes=torch.full((rows, 2), self._sides()[count], device=device),
        ).last_hidden_state
        return self.decode_task(hidden)

    @torch.no_grad()
    def reads(self, images: Tensor) -> Tensor:
        """What the decoder learns to give back: the chosen layer (B, N, F) of the vision tower, which must be frozen.

        Raises:
            ValueError: if a parameter of the tower trains.
        """
        check_frozen(self.encoder, "vision tower")
        return self._hidden(images)

    def _hidden(self, images: Tensor) -> Tensor:
        """The chosen layer (B, N, F) of the vision tower."""
        self.check_images(images)
        pixels = (images - self.input_shift) / self.input_scale
        return tower_hidden(self.encoder, pixels, self.select_layer)

    def _sides(self) -> dict[int, int]:
        """Side of the grid by number of tokens, for all pool scales."""
        return {self.num_tokens(scale): self.grid_size // scale for scale in range(1, self.num_scales + 1)}
