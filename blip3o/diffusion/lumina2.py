"""Lumina-Image 2.0's unified transformer (arXiv 2503.21758), diffusers' `Lumina2Transformer2DModel`."""

from __future__ import annotations

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

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
    """

    library = Lumina2Transformer2DModel

    @property
    def cond_dim(self) -> int:
        """Width of the caption embeddings."""
        return int(self.transformer.config.cap_feat_dim)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts (B, c, h, w) from noise to image turned round: the velocity noise - x0.

        Raises:
            ValueError: if the condition or the latents have more positions than the network has.
        """
        self._check_positions(latents, conditioning)
        embeds, mask = _counted_first(conditioning)
        return -self.transformer(
            hidden_states=latents.contiguous(),
            timestep=1 - sigma,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]

    def _check_positions(self, latents: Tensor, conditioning: Conditioning) -> None:
        config = self.transformer.config
        sides = [side // config.patch_size for side in latents.shape[2:]]
        needed = [conditioning.embeds.shape[1] + 1, *sides]
        if any(need > most for need, most in zip(needed, config.axes_lens, strict=True)):
            raise ValueError(
                f"axes_lens ({list(config.axes_lens)}) is too small for a condition of {needed[0] - 1} positions and "
                f"{sides[0]} x {sides[1]} patches; it needs at least {needed}: set it in `config`, or in the "
                "`overrides` of from_pretrained."
            )


def _counted_first(conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """Embeds (B, L, C) and mask (B, L) with the counted positions at the front, which is where diffusers reads them."""
    mask = conditioning.full_mask()
    if conditioning.mask is None:
        return conditioning.embeds, mask
    order = torch.argsort(~mask, dim=1, stable=True)
    return conditioning.embeds.take_along_dim(order[..., None], dim=1), mask.gather(1, order)
