"""Flow matching: noise levels, noisy latents, and the velocity to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from blip3o.diffusion.base import Generators, check_generators
from blip3o.part import Part

Density = Literal["uniform", "logit_normal"]


class FlowMatching(Part):
    """Straight paths x_sigma = (1 - sigma) x0 + sigma noise with velocity noise - x0.

    Noise levels are looked up in the scheduler's table of 1,000 shifted levels at index floor(u * 1000), as the
    released code does; u is uniform, or the logistic of a normal number (arXiv 2403.03206).

    Args:
        shift: how far the levels are moved towards noise: sigma' = shift * sigma / (1 + (shift - 1) sigma).
        density: distribution of u in training.
    """

    num_levels = 1000

    def __init__(self, *, shift: float = 1.0, density: Density = "uniform") -> None:
        super().__init__()
        if shift <= 0:
            raise ValueError(f"shift ({shift}) must be positive; 1 leaves the noise levels as they are.")
        if density not in ("uniform", "logit_normal"):
            raise ValueError(f"density ({density!r}) must be 'uniform' or 'logit_normal'.")
        self.shift = shift
        self.density = density
        # No buffer: the levels stay float32 in a model of half precision.
        self.levels = self.scheduler().sigmas.to(torch.float32)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A fresh diffusers scheduler with this shift."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_levels, shift=self.shift)

    def draw_levels(self, rows: int, generator: Generators, device: torch.device) -> Tensor:
        """Noise levels (rows,) of a training batch."""
        if self.density == "uniform":
            u = _per_row(torch.rand, rows, generator, device)
        else:
            u = torch.sigmoid(_per_row(torch.randn, rows, generator, device))
        return self.levels_at(u)

    def levels_at(self, u: Tensor) -> Tensor:
        """Noise levels (B,) of numbers `u` (B,) in [0, 1): the table's entry at index floor(1000 u)."""
        index = (u * self.num_levels).long().clamp(max=self.num_levels - 1)
        return self.levels.to(u.device)[index]

    @staticmethod
    def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents at noise levels `sigma` (B,)."""
        sigma = sigma[:, None, None, None].to(latents.dtype)
        return (1 - sigma) * latents + sigma * noise

    @staticmethod
    def target(latents: Tensor, noise: Tensor) -> Tensor:
        """The velocity to predict."""
        return noise - latents


def _per_row(draw, rows: int, generator: Generators, device: torch.device) -> Tensor:  # type: ignore[no-untyped-def]
    check_generators(generator, rows)
    if isinstance(generator, Sequence):
        return torch.cat([draw(1, generator=one, device=one.device) for one in generator]).to(device)
    source = device if generator is None else generator.device
    return draw(rows, generator=generator, device=source).to(device)
