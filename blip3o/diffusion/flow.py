"""The diffusion head over any denoiser, codec, objective and sampler."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from blip3o.diffusion.base import Codec, Denoiser, DiffusionHead, Generators, draw_noise
from blip3o.diffusion.guidance import Guidance, Guide, Interval, ReferenceGuidance, check_interval, limited
from blip3o.diffusion.objectives import FlowMatching, Objective
from blip3o.diffusion.samplers import Sampler, default_sampler
from blip3o.diffusion.sizes import latent_sides, nearest_size
from blip3o.diffusion.step_cache import caching_steps, check_step_cache
from blip3o.structures import Conditioning

Reference = Literal["width", "channels"]
PUBLISHED_SHIFT = 3.0
"""Shift of the released checkpoints' noise levels."""


class FlowHead(DiffusionHead):
    """Trains and samples a denoiser in the latents of a codec, by flow matching unless another objective is given.

    Args:
        denoiser: predicts what the objective asks for.
        codec: maps images to latents and back.
        image_size: side in pixels of the square images it renders.
        objective: noise levels and what is predicted; flow matching with the published shift when None.
        reference: how the clean latents of one reference image join the noisy ones at every step: beside them along
            the `width`, the prediction being cropped to the target's half; stacked as `channels` and brought back to
            the denoiser's by a 1x1 convolution; or not, when None.
        sampler: steps from noise to latents; when None, Euler's method for flow matching and DDIM for v-prediction.

    Raises:
        ValueError: if the codec does not divide the image, the denoiser can not take its latents at that size,
            `reference` is unknown, or the sampler does not sample what the objective trains.
    """

    takes_latents = True

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec,
        *,
        image_size: int,
        objective: Objective | None = None,
        reference: Reference | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        if image_size < 1 or image_size % codec.spatial_factor:
            raise ValueError(
                f"image_size ({image_size}) must be a multiple of the codec's spatial factor ({codec.spatial_factor})."
            )
        if reference not in (None, "width", "channels"):
            raise ValueError(f"reference ({reference!r}) must be 'width', 'channels' or None.")
        side = image_size // codec.spatial_factor
        try:
            denoiser.check_latents(codec.latent_channels, side, 2 * side if reference == "width" else side)
        except ValueError as error:
            beside = "" if reference is None else f" with reference={reference!r}"
            raise ValueError(
                f"denoiser ({type(denoiser).__name__}) and codec ({type(codec).__name__}, {codec.spatial_factor} "
                f"pixels a latent) do not fit at image_size ({image_size}){beside}: {error}"
            ) from error
        self.denoiser = denoiser
        self.codec = codec
        self.image_size: int = image_size
        self.objective: Objective = objective or FlowMatching(shift=PUBLISHED_SHIFT)
        self.sampler = sampler or default_sampler(self.objective)
        self.sampler.check(self.objective)
        self.reference = reference
        self.reference_proj: nn.Conv2d | None = None
        if reference is not None:
            self.reference_proj = nn.Conv2d(2 * codec.latent_channels, codec.latent_channels, 1)
            # Released checkpoints hold it for either way, so it is kept, idle, beside the width.
            self.reference_proj.requires_grad_(reference == "channels")

    @property
    def cond_dim(self) -> int:
        """Width of the condition: the denoiser's."""
        return self.denoiser.cond_dim

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """The denoiser's."""
        self.denoiser.check_condition(num_positions, grid)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: the codec's."""
        return self.codec.latent_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels and sides of an image's latents."""
        side = self.image_size // self.codec.spatial_factor
        return self.codec.latent_channels, side, side

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Sides in pixels of about `image_size**2` pixels in all, in the ratio of the given ones.

        They are multiples of the codec's spatial factor, or of a small power of two times it, where the denoiser's
        patches need that. The head's square where the denoiser takes no other latents, such as `DiT`.
        """
        return nearest_size(self.image_size, self.codec.spatial_factor, height, width, self._check_sides)

    def _check_sides(self, height: int, width: int) -> None:
        """Raises a ValueError where the denoiser can not take latents of these sides, joined to a reference's."""
        joined = 2 * width if self.reference == "width" else width
        self.denoiser.check_latents(self.latent_channels, height, joined)

    def check_rendering(self, *, guidance_interval: Interval | None = None, step_cache: float | None = None) -> None:
        """Raises a ValueError where one is out of range, or the denoiser has no blocks to skip."""
        check_interval(guidance_interval)
        check_step_cache(self.denoiser, step_cache)

    def check_references(self, num_references: int) -> None:
        """Raises a ValueError where there are several, and noise space holds one."""
        if self.reference is not None and num_references != 1:
            raise ValueError(
                f"references holds {num_references} images a row, but reference={self.reference!r} takes one; give "
                "one, or build the model with reference=None, and with reference_latents if the head is to see them."
            )

    def loss(
        self,
        images: Tensor | None,
        conditioning: Conditioning,
        references: Tensor | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the prediction, (B,), of images or of their normalised latents (B, c, h, w).

        Zeros take the place of the latents of references that are `hidden`.
        """
        if len(conditioning.embeds) == 0:
            return conditioning.embeds.sum(dim=(1, 2))  # nothing, but part of the graph
        with torch.no_grad(), torch.autocast(conditioning.embeds.device.type, enabled=False):
            target = self._target(images, latents)  # in the codec's own precision
            beside = self._reference_latents(references)
            if beside is not None and hidden is not None:
                beside = beside.masked_fill(hidden[:, None, None, None], 0.0)
        sigma = self.objective.draw_levels(len(target), generator, target.device)
        return self.velocity_loss(target, draw_noise(target.shape, generator, target), sigma, conditioning, beside)

    def _target(self, images: Tensor | None, latents: Tensor | None) -> Tensor:
        """The normalised latents (B, c, h, w) that are learnt."""
        if latents is not None and images is None:
            if latents.shape[1:] != self.latent_shape:
                raise ValueError(
                    f"latents has shape {tuple(latents.shape)}; this head renders {('B', *self.latent_shape)}: encode "
                    "the images again, at its image_size and by its codec."
                )
            return self.codec.in_own_dtype(latents)
        if images is None or latents is not None:
            raise ValueError("images and latents: exactly one of them must be given, the other must be None.")
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; this head renders (B, 3, {self.image_size}, "
                f"{self.image_size}): resize them, or set its image_size."
            )
        return self.encode(images)

    def velocity_loss(
        self,
        latents: Tensor,
        noise: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        reference_latents: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error (B,) of the prediction (a velocity with either objective) at given noise.

        Args:
            latents: (B, c, h, w) normalised latents of the images.
            noise: (B, c, h, w).
            sigma: (B,) noise levels.
            conditioning: embeds (B, L, C).
            reference_latents: (B, c, h, w) normalised latents of the reference images, where the head takes them.
        """
        noisy = self.objective.add_noise(latents, noise, sigma)
        velocity = self._predict(noisy, sigma, conditioning, reference_latents)
        target = self.objective.target(latents, noise, sigma)
        return (velocity.float() - target.float()).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        *,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
        negative: Conditioning | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        references: Tensor | None = None,
        image_guidance_scale: float | None = None,
        size: tuple[int, int] | None = None,
        guidance_interval: Interval | None = None,
        step_cache: float | None = None,
    ) -> Tensor:
        """The sampler's steps from noise to latents (B, c, h, w)."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps ({num_inference_steps}) must be at least 1.")
        guide = self.guided(
            conditioning,
            negative,
            guidance_scale,
            references=references,
            image_guidance_scale=image_guidance_scale,
            guidance_interval=guidance_interval,
        )
        embeds = self.denoiser.in_own_dtype(conditioning.embeds)
        sides = (self.image_size, self.image_size) if size is None else size
        shape = (len(embeds), self.latent_channels, *latent_sides(sides, self.codec.spatial_factor, self._check_sides))
        if references is not None and references.shape[3:] != sides:
            raise ValueError(
                f"references has shape {tuple(references.shape)}, but the image to render is {sides}; resize them."
            )
        if latents is None:
            latents = draw_noise(shape, generator, embeds)
        elif latents.shape != shape:
            raise ValueError(f"latents has shape {tuple(latents.shape)}; this head and batch need {shape}.")
        with caching_steps(self.denoiser, step_cache):
            return self.sampler.run(guide, latents.to(embeds), self.objective, num_inference_steps, generator)

    def guided(
        self,
        conditioning: Conditioning,
        negative: Conditioning | None = None,
        guidance_scale: float = 1.0,
        *,
        references: Tensor | None = None,
        denoiser: Denoiser | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
    ) -> Guide:
        """The prediction for a condition, to be called with noisy latents (B, c, h, w) and their noise levels (B,).

        Args:
            conditioning: embeds (B, L, C).
            negative: the unconditional condition; needed unless `guidance_scale` is 1.
            guidance_scale: classifier-free guidance, at least 0; 1 turns it off.
            references: (B, 1, 3, H, W) in [-1, 1], or None.
            denoiser: what predicts; the head's own when None.
            image_guidance_scale: guidance by the references, see `sample`.
            guidance_interval: noise levels (low, high) that are guided; all when None.

        Raises:
            ValueError: if a scale or what it needs is missing or out of range.
        """
        beside, scale = self._reference_latents(references), image_guidance_scale
        seen = partial(self._predict, reference_latents=beside, denoiser=denoiser)
        within = partial(limited, conditional=partial(seen, conditioning=conditioning), interval=guidance_interval)
        if scale is None:
            return within(Guidance(seen, conditioning, negative, guidance_scale))
        if beside is None and not conditioning.num_appended:
            raise ValueError(
                f"image_guidance_scale ({scale}) needs references that the head sees, in noise space or after the "
                "condition; leave it out."
            )
        if scale == 1:  # the branch without references has no weight
            text_hidden = None if negative is None else negative.with_appended_of(conditioning)
            return within(Guidance(seen, conditioning, text_hidden, guidance_scale))
        branches = None if beside is None else torch.cat([torch.zeros_like(beside), beside, beside])
        all_three = partial(self._predict, reference_latents=branches, denoiser=denoiser)
        return within(ReferenceGuidance(all_three, conditioning, negative, guidance_scale, scale))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to normalised latents."""
        return self.codec.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to images (B, 3, H, W) in [-1, 1]."""
        return self.codec.decode(latents)

    def _reference_latents(self, references: Tensor | None) -> Tensor | None:
        """Latents (B, c, h, w) of the one reference image of every row, where the head takes one."""
        if references is None:
            return None
        if self.reference is None:
            raise ValueError("references were given, but this head conditions on none; pass references=None.")
        if references.ndim != 5:
            raise ValueError(f"references has shape {tuple(references.shape)}; it must be (B, 1, 3, H, W).")
        self.check_references(references.shape[1])
        return self.encode(references[:, 0])

    def _predict(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        reference_latents: Tensor | None,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """A denoiser's prediction (B, c, h, w), the reference's latents joined to the noisy ones.

        It is given latents and condition in its own precision, and noise levels as they are.
        """
        denoiser = self.denoiser if denoiser is None else denoiser
        latents = denoiser.in_own_dtype(latents)
        conditioning = replace(conditioning, embeds=denoiser.in_own_dtype(conditioning.embeds))
        if reference_latents is None:
            return denoiser(latents, sigma, conditioning)
        # Guidance by text doubles the rows; both branches see the reference.
        beside = reference_latents.to(latents.dtype).repeat(len(latents) // len(reference_latents), 1, 1, 1)
        if self.reference == "width":
            return denoiser(torch.cat([latents, beside], dim=3), sigma, conditioning)[..., : latents.shape[3]]
        assert self.reference_proj is not None
        joined = self.reference_proj(torch.cat([latents, beside], dim=1).to(self.reference_proj.weight.dtype))
        return denoiser(denoiser.in_own_dtype(joined), sigma, conditioning)
