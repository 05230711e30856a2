"""Objectives: noise levels, noisy latents, and what a denoiser is to predict from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from blip3o.diffusion.base import Generators, check_generators
from blip3o.part import Part

Density = Literal["uniform", "logit_normal"]
BetaSchedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]


class Objective(Part):
    """How latents are mixed with noise, and what a denoiser learns to predict from the mixture.

    A noise level lies in [0, 1], where 1 is noise alone; what it means is the objective's own. Sampling from noise
    back to latents is a `Sampler`'s work, which says which objectives it samples.

    Args:
        density: distribution of the number u in [0, 1) that a training row's level is looked up by: uniform, or the
            logistic of a normal number (arXiv 2403.03206).

    Raises:
        ValueError: if `density` is unknown.
    """

    num_levels = 1000

    def __init__(self, density: Density = "uniform") -> None:
        super().__init__()
        if density not in ("uniform", "logit_normal"):
            raise ValueError(f"density ({density!r}) must be 'uniform' or 'logit_normal'.")
        self.density = density

    def draw_levels(self, rows: int, generator: Generators, device: torch.device) -> Tensor:
        """Noise levels (rows,) of a training batch."""
        if self.density == "uniform":
            u = _per_row(torch.rand, rows, generator, device)
        else:
            u = torch.sigmoid(_per_row(torch.randn, rows, generator, device))
        return self.levels_at(u)

    @abstractmethod
    def levels_at(self, u: Tensor) -> Tensor:
        """Noise levels (B,) of numbers `u` (B,) in [0, 1)."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents (B, c, h, w) mixed with noise of the same shape at levels `sigma` (B,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What to predict (B, c, h, w) from the mixture at levels `sigma` (B,)."""


class FlowMatching(Objective):
    """Straight paths x_sigma = (1 - sigma) x0 + sigma noise with velocity noise - x0.

    Noise levels are looked up in the scheduler's table of 1,000 shifted levels at index floor(u * 1000), as the
    released code does.

    Args:
        shift: how far the levels are moved towards noise: sigma' = shift * sigma / (1 + (shift - 1) sigma).
        density: distribution of u in training.
    """

    def __init__(self, *, shift: float = 1.0, density: Density = "uniform") -> None:
        super().__init__(density)
        if shift <= 0:
            raise ValueError(f"shift ({shift}) must be positive; 1 leaves the noise levels as they are.")
        self.shift = shift
        # No buffer: the levels stay float32 in a model of half precision.
        self.levels = self.scheduler().sigmas.to(torch.float32)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A fresh diffusers scheduler with this shift."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_levels, shift=self.shift)

    def levels_at(self, u: Tensor) -> Tensor:
        """Noise levels (B,) of numbers `u` (B,) in [0, 1): the table's entry at index floor(1000 u)."""
        return self.levels.to(u.device)[_index(u, self.num_levels)]

    @staticmethod
    def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents at noise levels `sigma` (B,)."""
        sigma = sigma[:, None, None, None].to(latents.dtype)
        return (1 - sigma) * latents + sigma * noise

    @staticmethod
    def target(latents: Tensor, noise: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The velocity, which is the same at every level."""
        return noise - latents


class VPrediction(Objective):
    """Variance-preserving diffusion x_t = alpha x0 + s noise, alpha^2 + s^2 = 1; predicts v = alpha noise - s x0.

    Progressive distillation's parameterisation (arXiv 2202.00512), over the 1,000 times t of diffusers' schedulers.
    The level that a denoiser is told is t / 1000, so that a network which counts time in thousandths is told t.

    Args:
        beta_schedule: diffusers' name of the noise schedule; `squaredcos_cap_v2` is the cosine.
        beta_start: first beta of the linear schedules.
        beta_end: last beta of the linear schedules.
        zero_terminal_snr: rescale the schedule so that the last time is noise alone (arXiv 2305.08891).
        density: distribution of u in training; t is floor(u * 1000).

    Raises:
        ValueError: if a name is unknown, or the betas do not rise within (0, 1).
    """

    def __init__(
        self,
        *,
        beta_schedule: BetaSchedule = "squaredcos_cap_v2",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
        density: Density = "uniform",
    ) -> None:
        super().__init__(density)
        if beta_schedule not in ("squaredcos_cap_v2", "linear", "scaled_linear"):
            raise ValueError(
                f"beta_schedule ({beta_schedule!r}) must be 'squaredcos_cap_v2', 'linear' or 'scaled_linear'."
            )
        if not 0 < beta_start < beta_end < 1:
            raise ValueError(f"beta_start ({beta_start}) and beta_end ({beta_end}) must rise within (0, 1).")
        self.process: dict[str, Any] = {
            "num_train_timesteps": self.num_levels,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "rescale_betas_zero_snr": zero_terminal_snr,
        }
        # No buffers: the tables keep their precision in a model of half precision.
        self.alphas_cumprod = DDIMScheduler(**self.process).alphas_cumprod.double()
        self.alphas = self.alphas_cumprod.sqrt()
        self.sigmas = (1 - self.alphas_cumprod).sqrt()

    def levels_at(self, u: Tensor) -> Tensor:
        """Levels t / 1000 (B,) of numbers `u` (B,) in [0, 1), where t is floor(1000 u)."""
        return _index(u, self.num_levels).float() / self.num_levels

    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents at levels t / 1000 (B,)."""
        alpha, s = self._alpha_sigma(latents, sigma)
        return alpha * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The velocity v at levels t / 1000 (B,)."""
        alpha, s = self._alpha_sigma(latents, sigma)
        return alpha * noise - s * latents

    def _alpha_sigma(self, like: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Shares (B, 1, 1, 1) of latents and noise at levels t / 1000 (B,)."""
        time = (level * self.num_levels).round().long()
        alpha, sigma = (table.to(like)[time][:, None, None, None] for table in (self.alphas, self.sigmas))
        return alpha, sigma


def _index(u: Tensor, count: int) -> Tensor:
    """floor(count u), below `count`."""
    return (u * count).long().clamp(max=count - 1)


def _per_row(draw, rows: int, generator: Generators, device: torch.device) -> Tensor:  # type: ignore[no-untyped-def]
    check_generators(generator, rows)
    if isinstance(generator, Sequence):
        return torch.cat([draw(1, generator=one, device=one.device) for one in generator]).to(device)
    source = device if generator is None else generator.device
    return draw(rows, generator=generator, device=source).to(device)
