"""Classifier-free guidance (arXiv 2207.12598), all branches in one batch.

Where a head sees reference images, two things can be guided by: the text, which is the whole condition from the AR
model, and the references, which are their latents in noise space and those after the condition. There are two ways.

- `Guidance`, the published one: the negative condition decides. As `Blip3oNext` makes it, text and latents after the
  condition are zeros in it, and latents in noise space stay.
- `ReferenceGuidance`, by a scale for each (InstructPix2Pix, arXiv 2211.09800, section 3.2.1).
"""

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
        _check("guidance_scale", scale)
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


class ReferenceGuidance:
    """Calls a denoiser with neither text nor references, with references alone, and with both, and extrapolates.

    The prediction is neither + image_scale * (references - neither) + scale * (both - references).

    Args:
        denoiser: called with 3 B rows of latents, noise levels and a condition, B for each branch in that order; what
            it knows of references besides the condition must be in the same order.
        conditioning: the condition, B rows, its appended positions telling of the references.
        negative: the condition with neither, B rows, of as many positions.
        scale: of the text, at least 0.
        image_scale: of the references, at least 0; larger values stay closer to them.

    Raises:
        ValueError: if a scale is negative, or `negative` is missing.
    """

    def __init__(
        self,
        denoiser: Predict,
        conditioning: Conditioning,
        negative: Conditioning | None,
        scale: float,
        image_scale: float,
    ) -> None:
        _check("guidance_scale", scale)
        _check("image_guidance_scale", image_scale)
        if negative is None:
            raise ValueError(f"image_guidance_scale ({image_scale}) needs a negative condition; pass `negative`.")
        self.denoiser = denoiser
        self.scale = scale
        self.image_scale = image_scale
        references = negative.with_appended_of(conditioning)
        self.conditioning = conditioning.stacked_on(references).stacked_on(negative)

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The guided prediction at noisy latents (B, c, h, w) and noise levels (B,)."""
        all_three = self.denoiser(latents.repeat(3, 1, 1, 1), sigma.repeat(3), self.conditioning)
        neither, references, both = all_three.chunk(3)
        return neither + self.image_scale * (references - neither) + self.scale * (both - references)


def _check(name: str, scale: float) -> None:
    if scale < 0:
        raise ValueError(f"{name} ({scale}) must be at least 0; 1 turns guidance off.")
