"""Classifier-free guidance (arXiv 2207.12598), all branches in one batch.

Where a head sees reference images, two things can be guided by: the text, which is the whole condition from the AR
model, and the references, which are their latents in noise space and those after the condition. There are two ways.

- `Guidance`, the published one: the negative condition decides. As `Blip3oNext` makes it, text and latents after the
  condition are zeros in it, and latents in noise space stay.
- `ReferenceGuidance`, by a scale for each (InstructPix2Pix, arXiv 2211.09800, section 3.2.1).

Either may be limited to an interval of noise levels (`IntervalGuidance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from blip3o.structures import Conditioning

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
Guide = Callable[[Tensor, Tensor], Tensor]
"""Called with noisy latents (B, c, h, w) and their noise levels (B,): the prediction that a sampler follows."""

Interval = tuple[float, float]
"""Noise levels: above the first, up to and with the second."""


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


class IntervalGuidance:
    """Guides within an interval of noise levels; outside it the condition's own prediction stands.

    Kynkäänniemi et al. (arXiv 2404.07724): guidance harms at high noise levels and does little at low ones. Where no
    row is inside, the other branches do not run.

    Args:
        guide: guides everywhere.
        conditional: predicts with the condition alone.
        interval: low and high noise level, 0 <= low < high <= 1.
    """

    def __init__(self, guide: Guide, conditional: Guide, interval: Interval) -> None:
        check_interval(interval)
        self.guide = guide
        self.conditional = conditional
        self.interval = interval

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The prediction at noisy latents (B, c, h, w) and noise levels (B,)."""
        low, high = self.interval
        inside = (sigma > low) & (sigma <= high)
        if inside.all():
            return self.guide(latents, sigma)
        plain = self.conditional(latents, sigma)
        if not inside.any():
            return plain
        return torch.where(inside[:, None, None, None], self.guide(latents, sigma), plain)


def limited(guide: Guide, conditional: Guide, interval: Interval | None) -> Guide:
    """`guide` within an interval; itself where the interval is None or all noise levels."""
    check_interval(interval)
    return guide if interval is None or tuple(interval) == (0, 1) else IntervalGuidance(guide, conditional, interval)


def check_interval(interval: object) -> None:
    """Raises a ValueError unless `interval` is None or two noise levels."""
    if interval is None:
        return
    two = list(interval) if isinstance(interval, tuple | list) else []
    if len(two) != 2 or not all(isinstance(one, Real) and math.isfinite(one) for one in two):
        raise ValueError(
            f"guidance_interval ({interval!r}) must be two noise levels (low, high); leave it out for all."
        )
    if not 0 <= two[0] < two[1] <= 1:
        raise ValueError(
            f"guidance_interval ({interval}) must hold 0 <= low < high <= 1, 1 being noise alone; (0, 1) is all."
        )


def _check(name: str, scale: float) -> None:
    if scale < 0:
        raise ValueError(f"{name} ({scale}) must be at least 0; 1 turns guidance off.")
