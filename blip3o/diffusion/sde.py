"""A stochastic sampler of flow matching: each step is a draw from a Gaussian, and so has a probability.

Flow-GRPO (arXiv 2505.05470), section 4.2: along x_t = (1 - t) x0 + t noise with velocity v, the score of the marginal
at t is -(x + (1 - t) v) / t. The equation

    dx = (v + s^2 / (2 t) (x + (1 - t) v)) dt + s dw,    s = noise_level sqrt(t / (1 - t))

run from t = 1 to 0 therefore has the marginals of the flow dx = v dt, whatever `noise_level` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from blip3o.diffusion.base import Generators, draw_noise
from blip3o.diffusion.objectives import Objective
from blip3o.diffusion.samplers import FlowMatchEuler

NEAR_ONE = 1 - 1e-4
"""Noise levels above it count as 1."""


@dataclass(frozen=True)
class Transition:
    """The Gaussians from which the latents after a step are drawn, one a row.

    Attributes:
        mean: (B, c, h, w).
        std: (B,), the same for every number of a row; 0 where the step is not random.
    """

    mean: Tensor
    std: Tensor

    def draw(self, generator: Generators) -> Tensor:
        """Latents (B, c, h, w) after the step."""
        return self.mean + _spread(self.std) * draw_noise(self.mean.shape, generator, self.mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Log-density (B,) of latents (B, c, h, w) after the step, the mean over their numbers; `std` is above 0."""
        std = _spread(self.std)
        each = -((latents - self.mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
        return each.mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Step:
    """One step of a path.

    Attributes:
        latents: (B, c, h, w) before it.
        sigma: scalar, the noise level before it.
        next_latents: (B, c, h, w) after it.
        next_sigma: scalar, the noise level after it.
        transition: what they were drawn from.
    """

    latents: Tensor
    sigma: Tensor
    next_latents: Tensor
    next_sigma: Tensor
    transition: Transition


def transition(latents: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor, noise_level: float) -> Transition:
    """A step of the method of Euler and Maruyama, of another length for every row.

    The coefficient s is infinite at level 1, so a step that starts there takes 1 - t at the level where it ends, as
    the released code does. However short, it leaves noise_level^4 / 4 too much variance, which dies out below. A step
    to level 0 adds no noise, which would stay in the picture: it is Euler's.

    Args:
        latents: (B, c, h, w).
        velocity: (B, c, h, w) predicted there.
        sigma: (B,) noise levels of the latents, in (0, 1].
        next_sigma: (B,) lower noise levels, where the step ends.
        noise_level: scale of the noise; 0 is Euler's method.
    """
    clean = 1 - torch.where(sigma > NEAR_ONE, next_sigma, sigma)
    squared = torch.where(next_sigma > 0, noise_level**2 * sigma / clean, torch.zeros_like(sigma))  # s^2
    velocity = velocity.to(latents.dtype)
    towards = latents + _spread(1 - sigma) * velocity  # -t times the score
    drift = velocity + _spread(squared / (2 * sigma)) * towards
    mean = latents + _spread(next_sigma - sigma) * drift
    return Transition(mean, (squared * (sigma - next_sigma)).sqrt())


class FlowMatchSDE(FlowMatchEuler):
    """Stochastic steps with the marginals of the flow, at the levels of `FlowMatchEuler`.

    Args:
        noise_level: scale of the noise that every step but the last adds; 0 is `FlowMatchEuler`. Few steps follow the
            marginals worse the larger it is; Flow-GRPO takes 0.7.

    Raises:
        ValueError: if `noise_level` is negative or not finite.
    """

    def __init__(self, *, noise_level: float = 0.7) -> None:
        super().__init__()
        if not 0 <= noise_level < math.inf:
            raise ValueError(f"noise_level ({noise_level}) must be at least 0 and finite; 0 adds no noise.")
        self.noise_level = noise_level

    def run(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        latents: Tensor,
        objective: Objective,
        num_inference_steps: int,
        generator: Generators = None,
    ) -> Tensor:
        """Latents at the end of a path, in the precision of `latents`."""
        last = latents
        for step in self.walk(predict, latents, objective, num_inference_steps, generator):
            last = step.next_latents
        return last.to(latents.dtype)

    def walk(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        latents: Tensor,
        objective: Objective,
        num_inference_steps: int,
        generator: Generators = None,
    ) -> Iterator[Step]:
        """The steps of a path from noise to latents, in float32 at least. The last one is not random.

        Args:
            predict: called with noisy latents and their noise levels (B,).
            latents: (B, c, h, w) noise.
            objective: flow matching.
            num_inference_steps: steps, at least 1.
            generator: source of the noise that steps add, one or one a row.
        """
        scheduler, _ = self.start(objective, num_inference_steps, latents.device)
        levels = scheduler.sigmas.to(latents.device)
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        for number, (sigma, next_sigma) in enumerate(pairwise(levels), start=1):
            before, after = sigma.expand(len(latents)), next_sigma.expand(len(latents))
            gaussian = transition(latents, predict(latents, before), before, after, self.noise_level)
            random = self.noise_level > 0 and number < num_inference_steps
            drawn = gaussian.draw(generator) if random else gaussian.mean
            yield Step(latents, sigma, drawn, next_sigma, gaussian)
            latents = drawn


def _spread(values: Tensor) -> Tensor:
    """One number a row (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
