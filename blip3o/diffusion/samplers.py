"""Samplers: from noise to latents by diffusers' schedulers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from blip3o.diffusion.base import Generators
from blip3o.diffusion.objectives import FlowMatching, Objective, VPrediction
from blip3o.part import Part

Scheduler = Any
"""A scheduler of diffusers, with `timesteps` and `step`."""


class Sampler(Part):
    """Steps from noise to latents through one of diffusers' schedulers.

    Attributes:
        objectives: what it samples.
    """

    objectives: ClassVar[tuple[type[Objective], ...]]

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def start(self, objective: Objective, num_inference_steps: int, device: torch.device) -> tuple[Scheduler, Tensor]:
        """A fresh scheduler with its timesteps set, and the noise level of the call at each of them.

        Args:
            objective: one of `objectives`.
            num_inference_steps: calls of the denoiser at most.
            device: where the latents are.
        """

    def run(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        latents: Tensor,
        objective: Objective,
        num_inference_steps: int,
        generator: Generators = None,
    ) -> Tensor:
        """Latents (B, c, h, w) from noise of that shape.

        Args:
            predict: called with noisy latents and their noise levels (B,).
            latents: the noise.
            objective: what `predict` was trained for.
            num_inference_steps: calls of `predict` at most, at least 1.
            generator: source of what a stochastic sampler draws, one or one a row; others draw nothing.
        """
        scheduler, levels = self.start(objective, num_inference_steps, latents.device)
        for level, timestep in zip(levels.to(latents.device), scheduler.timesteps, strict=True):
            prediction = predict(latents, level.expand(len(latents)))
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    def check(self, objective: Objective) -> None:
        """Raises a ValueError unless this samples `objective`."""
        if not isinstance(objective, self.objectives):
            fitting = [kind.__name__ for kind in SAMPLERS if isinstance(objective, kind.objectives)]
            trained = " or ".join(kind.__name__ for kind in self.objectives)
            raise ValueError(
                f"sampler ({type(self).__name__}) does not sample what objective ({type(objective).__name__}) trains; "
                f"use {', '.join(fitting) or 'a sampler of your own'}, or train {trained}."
            )


class FlowMatchEuler(Sampler):
    """Euler's method at levels linspace(1, 1 / steps, steps), shifted: the published sampler of flow matching."""

    objectives = (FlowMatching,)

    def start(self, objective: Objective, num_inference_steps: int, device: torch.device) -> tuple[Scheduler, Tensor]:
        """Calls the denoiser once a step."""
        assert isinstance(objective, FlowMatching)
        scheduler = objective.scheduler()
        levels = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=device)
        return scheduler, scheduler.sigmas[:-1]


class FlowMatchHeun(Sampler):
    """Heun's method for flow matching: two calls a step, and one in the last, so (num_inference_steps + 1) // 2 steps.

    An even number of calls is thus rounded down to the odd one below.
    """

    objectives = (FlowMatching,)

    def start(self, objective: Objective, num_inference_steps: int, device: torch.device) -> tuple[Scheduler, Tensor]:
        """Calls the denoiser at both ends of a step."""
        assert isinstance(objective, FlowMatching)
        scheduler = FlowMatchHeunDiscreteScheduler(num_train_timesteps=objective.num_levels, shift=objective.shift)
        scheduler.set_timesteps((num_inference_steps + 1) // 2, device=device)
        scheduler.set_begin_index(0)
        return scheduler, scheduler.sigmas[:-1]


class Multistep(Sampler):
    """One of diffusers' multistep solvers, for flow matching and for v-prediction.

    Args:
        solver_order: 1, 2 or 3.

    Attributes:
        scheduler: diffusers' class.

    Raises:
        ValueError: if `solver_order` is out of range.
    """

    objectives = (FlowMatching, VPrediction)
    scheduler: ClassVar[Any]

    def __init__(self, *, solver_order: int = 2) -> None:
        super().__init__()
        if solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order ({solver_order}) must be 1, 2 or 3.")
        self.solver_order = solver_order

    def start(self, objective: Objective, num_inference_steps: int, device: torch.device) -> tuple[Scheduler, Tensor]:
        """Calls the denoiser once a step."""
        scheduler = self.scheduler(solver_order=self.solver_order, **_told(objective))
        scheduler.set_timesteps(num_inference_steps, device=device)
        # Told where it begins, it does not look the first timestep up, which rounding may have made ambiguous.
        scheduler.set_begin_index(0)
        if isinstance(objective, VPrediction):
            assert torch.equal(scheduler.timesteps.cpu(), _times(objective, num_inference_steps))
            return scheduler, scheduler.timesteps.float() / objective.num_levels
        return scheduler, scheduler.sigmas[:-1]


class DPMSolverMultistep(Multistep):
    """DPM-Solver++ (arXiv 2211.01095); of order 1 it is DDIM."""

    scheduler = DPMSolverMultistepScheduler


class UniPC(Multistep):
    """UniPC (arXiv 2302.04867)."""

    scheduler = UniPCMultistepScheduler


class DDIM(Sampler):
    """DDIM (arXiv 2010.02502), deterministic, for v-prediction.

    The process is respaced to the times it visits (arXiv 2102.09672), since diffusers' scheduler takes the previous
    time to lie a whole number of times below, which is wrong where the steps do not divide the 1,000 times.
    """

    objectives = (VPrediction,)

    def start(self, objective: Objective, num_inference_steps: int, device: torch.device) -> tuple[Scheduler, Tensor]:
        """Calls the denoiser once a step, first at the last time."""
        assert isinstance(objective, VPrediction)
        times = _times(objective, num_inference_steps)
        kept = objective.alphas_cumprod[times].flip(0)
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        scheduler = DDIMScheduler(
            num_train_timesteps=num_inference_steps,
            trained_betas=betas.tolist(),
            prediction_type="v_prediction",
            clip_sample=False,
        )
        scheduler.set_timesteps(num_inference_steps)
        return scheduler, times.float() / objective.num_levels


SAMPLERS: tuple[type[Sampler], ...] = (FlowMatchEuler, DDIM, FlowMatchHeun, DPMSolverMultistep, UniPC)
"""The samplers of this file; the first that samples an objective is its default."""


def default_sampler(objective: Objective) -> Sampler:
    """The sampler of an objective where none is named.

    Raises:
        ValueError: if none of this file samples it.
    """
    for kind in SAMPLERS:
        if isinstance(objective, kind.objectives):
            return kind()
    raise ValueError(f"objective ({type(objective).__name__}) has no default sampler; pass `sampler`.")


def _times(objective: VPrediction, num_inference_steps: int) -> Tensor:
    """The times that a sampler visits, int64, from the last one down: evenly spaced, the clean end left out."""
    last = objective.num_levels - 1
    if num_inference_steps > last:
        raise ValueError(f"num_inference_steps ({num_inference_steps}) must be at most {last} with v-prediction.")
    return torch.from_numpy(np.linspace(0, last, num_inference_steps + 1).round()[:0:-1].astype(np.int64))


def _told(objective: Objective) -> dict[str, Any]:
    """What diffusers' multistep schedulers must be told of an objective's process."""
    if isinstance(objective, VPrediction):
        return objective.process | {"prediction_type": "v_prediction", "timestep_spacing": "linspace"}
    assert isinstance(objective, FlowMatching)
    return {
        "num_train_timesteps": objective.num_levels,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": objective.shift,
    }
