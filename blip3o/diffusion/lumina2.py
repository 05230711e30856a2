"""Lumina-Image 2.0's unified transformer (arXiv 2503.21758), diffusers' `Lumina2Transformer2DModel`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn

from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning


class Lumina2(DiffusersDenoiser):
    """Wraps diffusers' Lumina 2; the condition takes the place of its caption embeddings.

    Condition and latents form one sequence whose rotary positions are those of the counted condition positions, then
    those of the latents. Lumina 2 counts time from noise to image and predicts image minus noise; both are turned
    round here.

    Args:
        config: arguments of `diffusers.Lumina2Transformer2DModel`. `axes_lens` bounds the positions: the first number
            must exceed those of the condition.
        attention: see `DiffusersDenoiser`; there is no `flash`, for the network masks its condition in every case.
        cond_grid: see `DiffusersDenoiser`.
    """

    library = Lumina2Transformer2DModel
    always_masked = True

    @property
    def cond_dim(self) -> int:
        """Width of the caption embeddings."""
        return int(self.transformer.config.cap_feat_dim)

    def check_latents(self, channels: int, height: int, width: int) -> None:
        """Raises a ValueError where there are more patches along a side than positions."""
        super().check_latents(channels, height, width)
        sides = [side // self.transformer.config.patch_size for side in (height, width)]
        self._check_lens(f"{sides[0]} x {sides[1]} patches", [0, *sides])

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where the condition is longer than the network has positions; one that varies passes."""
        super().check_condition(num_positions, grid)
        if num_positions is not None:
            self._check_counted(num_positions)

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """Those of condition and latents together; the refiners before them always run."""
        return list(self.transformer.layers)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts (B, c, h, w) from noise to image turned round: the velocity noise - x0.

        Raises:
            ValueError: if the condition or the latents have more positions than the network has.
        """
        self.check_latents(*latents.shape[1:])
        self._check_counted(conditioning.embeds.shape[1])
        embeds, mask = _counted_first(replace(conditioning, embeds=self.placed(conditioning)))
        return -self.run(
            mask,
            hidden_states=latents.contiguous(),
            timestep=1 - sigma,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
        )

    def _check_counted(self, num_positions: int) -> None:
        """Raises a ValueError where a condition has more positions than the network."""
        self._check_lens(f"a condition of {num_positions} positions", [num_positions + 1, 0, 0])

    def _check_lens(self, what: str, needed: list[int]) -> None:
        """Raises a ValueError where `axes_lens` has fewer than the `needed` positions along an axis."""
        lens = list(self.transformer.config.axes_lens)
        if any(need > most for need, most in zip(needed, lens, strict=True)):
            raise ValueError(
                f"axes_lens ({lens}) is too small for {what}; it needs at least {list(map(max, needed, lens))}: set it "
                "in `config`, or in the `overrides` of from_pretrained."
            )


def _counted_first(conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """Embeds (B, L, C) and mask (B, L) with the counted positions at the front, which is where diffusers reads them."""
    mask = conditioning.full_mask()
    if conditioning.mask is None:
        return conditioning.embeds, mask
    order = torch.argsort(~mask, dim=1, stable=True)
    return conditioning.embeds.take_along_dim(order[..., None], dim=1), mask.gather(1, order)
