"""A flow-matching diffusion head over any denoiser and codec."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from blip3o.diffusion.base import Codec, Denoiser, DiffusionHead, Generators, check_generators
from blip3o.diffusion.guidance import Guidance
from blip3o.diffusion.objectives import FlowMatching
from blip3o.structures import Conditioning


class FlowHead(DiffusionHead):
    """Trains and samples a denoiser by flow matching in the latents of a codec.

    Args:
        denoiser: predicts the velocity.
        codec: maps images to latents and back.
        image_size: side in pixels of the square images it renders.
        objective: noise levels and their shift; the published ones when None.

    Raises:
        ValueError: if denoiser and codec disagree on the latents' channels, or the codec does not divide the image.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec,
        *,
        image_size: int,
        objective: FlowMatching | None = None,
    ) -> None:
        super().__init__()
        if denoiser.latent_channels != codec.latent_channels:
            raise ValueError(
                f"the denoiser works on {denoiser.latent_channels} latent channels, but the codec gives "
                f"{codec.latent_channels}; set the denoiser's to {codec.latent_channels}."
            )
        if image_size < 1 or image_size % codec.spatial_factor:
            raise ValueError(
                f"image_size ({image_size}) must be a multiple of the codec's spatial factor ({codec.spatial_factor})."
            )
        self.denoiser = denoiser
        self.codec = codec
        self.image_size = image_size
        self.objective = objective or FlowMatching(shift=3.0)

    @property
    def cond_dim(self) -> int:
        """Width of the condition: the denoiser's."""
        return self.denoiser.cond_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels and sides of an image's latents."""
        side = self.image_size // self.codec.spatial_factor
        return self.codec.latent_channels, side, side

    def loss(
        self,
        images: Tensor,
        conditioning: Conditioning,
        references: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Mean squared error of the velocity, (B,)."""
        self._refuse(references)
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; this head renders (B, 3, {self.image_size}, "
                f"{self.image_size}): resize them, or set its image_size."
            )
        if len(images) == 0:
            return conditioning.embeds.sum(dim=(1, 2))  # nothing, but part of the graph
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            latents = self.encode(images)  # in the codec's own precision: they are the target
        sigma = self.objective.draw_levels(len(latents), generator, latents.device)
        return self.velocity_loss(latents, _noise(latents.shape, generator, latents), sigma, conditioning)

    def velocity_loss(self, latents: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Mean squared error (B,) of the velocity at given noise.

        Args:
            latents: (B, c, h, w) normalised latents of the images.
            noise: (B, c, h, w).
            sigma: (B,) noise levels.
            conditioning: embeds (B, L, C).
        """
        velocity = self.denoiser(self.objective.add_noise(latents, noise, sigma), sigma, conditioning)
        return (velocity.float() - self.objective.target(latents, noise).float()).square().mean(dim=(1, 2, 3))

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
    ) -> Tensor:
        """Euler steps from noise to latents (B, c, h, w)."""
        self._refuse(references)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps ({num_inference_steps}) must be at least 1.")
        guide = Guidance(self.denoiser, conditioning, negative, guidance_scale)
        embeds = conditioning.embeds
        shape = (len(embeds), *self.latent_shape)
        if latents is None:
            latents = _noise(shape, generator, embeds)
        elif latents.shape != shape:
            raise ValueError(f"latents has shape {tuple(latents.shape)}; this head and batch need {shape}.")
        scheduler = self.objective.scheduler()
        levels = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=embeds.device)
        for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
            velocity = guide(latents, sigma.expand(len(latents)))
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to normalised latents."""
        return self.codec.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to images (B, 3, H, W) in [-1, 1]."""
        return self.codec.decode(latents)

    def _refuse(self, references: Tensor | None) -> None:
        if references is not None:
            raise ValueError("references were given, but this head conditions on none; pass references=None.")


def _noise(shape: tuple[int, ...] | torch.Size, generator: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers; a list of generators draws each row from its own."""
    check_generators(generator, shape[0])
    source = list(generator) if isinstance(generator, Sequence) else generator
    return randn_tensor(tuple(shape), generator=source, device=like.device, dtype=like.dtype)
