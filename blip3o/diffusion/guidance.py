"""Classifier-free guidance (arXiv 2207.12598), both branches in one batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from blip3o.structures import Conditioning

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]


class Guidance:
    """Calls a denoiser with and without a condition, and extrapolates.

    Args:
        denoiser: the network, called with latents, noise levels and a condition.
        conditioning: the condition, B rows.
        negative: the unconditional condition, B rows; needed unless the scale is 1.
        scale: 1 leaves the condition's prediction as it is; larger values follow it more strongly.

    Raises:
        ValueError: if the scale is negative, or `negative` is missing.
    """

    def __init__(
        self, denoiser: Predict, conditioning: Conditioning, negative: Conditioning | None, scale: float
    ) -> None:
        if scale < 0:
            raise ValueError(f"guidance_scale ({scale}) must be at least 0; 1 turns guidance off.")
        self.denoiser = denoiser
        self.scale = scale
        self.conditioning = conditioning
        if scale != 1:
            if negative is None:
                raise ValueError(f"guidance_scale ({scale}) needs a negative condition; pass `negative`, or use 1.")
            self.conditioning = conditioning.stacked_on(negative)

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The guided prediction at noisy latents (B, c, h, w) and noise levels (B,)."""
        if self.scale == 1:
            return self.denoiser(latents, sigma, self.conditioning)
        both = self.denoiser(latents.repeat(2, 1, 1, 1), sigma.repeat(2), self.conditioning)
        unconditional, conditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
