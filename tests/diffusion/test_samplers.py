"""Samplers: against the exact solution for Gaussian data, and which objectives each of them samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blip3o.diffusion import (
    DDIM,
    DPMSolverMultistep,
    FlowHead,
    FlowMatchEuler,
    FlowMatchHeun,
    FlowMatching,
    Objective,
    PixelCodec,
    Sampler,
    UniPC,
    VPrediction,
)
from blip3o.diffusion.samplers import SAMPLERS
from tests.diffusion.contract import DiffusionHeadContract, condition
from tests.diffusion.test_flow import Knows
from tests.tiny import generators, rebuilt, tiny_dit, tiny_head, tiny_images

MEAN, STD = 0.5, 0.3
FLOW, SHIFTED = FlowMatching(), FlowMatching(shift=3.0)
COSINE, ZERO_SNR = VPrediction(), VPrediction(beta_schedule="linear", zero_terminal_snr=True)
PAIRS: list[tuple[Sampler, Objective]] = [
    *((sampler, objective) for sampler in (FlowMatchEuler(), FlowMatchHeun()) for objective in (FLOW, SHIFTED)),
    *((DDIM(), objective) for objective in (COSINE, ZERO_SNR)),
    *(
        (sampler, objective)
        for sampler in (DPMSolverMultistep(), UniPC(), DPMSolverMultistep(solver_order=3), UniPC(solver_order=3))
        for objective in (FLOW, SHIFTED, COSINE, ZERO_SNR)
    ),
]
NAMES = [f"{type(s).__name__}-{getattr(s, 'solver_order', 1)}-{type(o).__name__}" for s, o in PAIRS]


def shares(objective: Objective, level: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of latents and noise at levels (B,), read off by mixing ones with nothing."""
    one, none = torch.ones(len(level), 1, 1, 1, dtype=torch.float64), torch.zeros(len(level), 1, 1, 1)
    return objective.add_noise(one, none.double(), level), objective.add_noise(none.double(), one, level)


def gaussian(objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """The best prediction where every number of the latents is normal with `MEAN` and `STD`."""

    def predict(latents: Tensor, level: Tensor) -> Tensor:
        alpha, sigma = shares(objective, level)
        deviation = (latents - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        clean, noise = MEAN + alpha * STD**2 * deviation, sigma * deviation
        return objective.target(clean, noise, level).float()

    return predict


NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def error(sampler: Sampler, objective: Objective, steps: int) -> float:
    """The largest error after so many steps; the exact path carries noise z to MEAN + STD z."""
    sampled = sampler.run(gaussian(objective), NOISE, objective, steps)
    return (sampled - (MEAN + STD * NOISE)).abs().max().item()


@pytest.mark.parametrize(("sampler", "objective"), PAIRS, ids=NAMES)
def test_samples_converge_to_the_exact_solution(sampler: Sampler, objective: Objective) -> None:
    """The steps divide the 1,000 training times at one count and not at the other."""
    errors = [error(sampler, objective, steps) for steps in (10, 37, 150)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.04


@pytest.mark.parametrize("objective", [FLOW, SHIFTED, COSINE, ZERO_SNR], ids=["flow", "shifted", "cosine", "zero-snr"])
def test_higher_orders_are_closer_at_the_same_number_of_calls(objective: Objective) -> None:
    first: Sampler = FlowMatchEuler() if isinstance(objective, FlowMatching) else DDIM()
    others: list[Sampler] = [DPMSolverMultistep(), UniPC()]
    if isinstance(objective, FlowMatching):
        others.append(FlowMatchHeun())
    for sampler in others:
        assert error(sampler, objective, 41) < error(first, objective, 41) / 2, type(sampler).__name__


def test_the_first_order_of_dpm_solver_is_ddim() -> None:
    noise = 2 * NOISE
    one, other = (
        sampler.run(gaussian(ZERO_SNR), noise, ZERO_SNR, 7) for sampler in (DDIM(), DPMSolverMultistep(solver_order=1))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("sampler", "objective"), PAIRS, ids=NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_more_calls_are_made_than_asked_for_and_levels_fall(
    sampler: Sampler, objective: Objective, steps: int
) -> None:
    levels = []

    def predict(latents: Tensor, level: Tensor) -> Tensor:
        assert level.shape == (2,) and level[0] == level[1]
        levels.append(level[0].item())
        return gaussian(objective)(latents, level)

    assert sampler.run(predict, NOISE, objective, steps).isfinite().all()
    made = steps - 1 + steps % 2 if isinstance(sampler, FlowMatchHeun) else steps
    assert len(levels) == made
    assert levels[0] >= 0.99 and levels[-1] > 0 and levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("sampler", [FlowMatchHeun(), DPMSolverMultistep(), UniPC()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 6])
def test_a_denoiser_that_knows_the_image_leads_to_it(sampler: Sampler, steps: int) -> None:
    denoiser = Knows()
    head = FlowHead(denoiser, PixelCodec(4), image_size=32, objective=SHIFTED, sampler=sampler)
    denoiser.target = head.encode(tiny_images(2))
    latents = head.sample(condition(24), num_inference_steps=steps, generator=generators(2))
    torch.testing.assert_close(head.decode(latents), tiny_images(2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolverMultistep(), UniPC()], ids=lambda s: type(s).__name__)
def test_more_steps_than_training_times_are_refused(sampler: Sampler) -> None:
    scheduler, levels = sampler.start(COSINE, 999, torch.device("cpu"))
    assert torch.equal((levels * 1000).round(), torch.arange(999, 0, -1.0)) and len(scheduler.timesteps) == 999
    with pytest.raises(ValueError, match=r"num_inference_steps \(1000\) must be at most 999"):
        sampler.run(gaussian(COSINE), NOISE, COSINE, 1000)


def test_the_default_is_euler_for_flow_matching_and_ddim_for_v_prediction() -> None:
    assert isinstance(tiny_head().sampler, FlowMatchEuler)
    head = FlowHead(tiny_dit(), PixelCodec(4), image_size=32, objective=VPrediction())
    assert isinstance(head.sampler, DDIM) and head.config()["init_args"]["sampler"] is None


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("objective", [FLOW, COSINE], ids=["flow", "v"])
def test_pairs_that_do_not_fit_are_refused(kind: type[Sampler], objective: Objective) -> None:
    given = {"image_size": 32, "objective": objective, "sampler": kind()}
    if isinstance(objective, kind.objectives):
        head = FlowHead(tiny_dit(), PixelCodec(4), **given)  # type: ignore[arg-type]
        assert rebuilt(head).config() == head.config()
        return
    name, remedy = (
        type(objective).__name__,
        "DDIM, DPM" if objective is COSINE else "FlowMatchEuler, FlowMatchHeun, DPM",
    )
    with pytest.raises(ValueError, match=rf"sampler \({kind.__name__}\) .* objective \({name}\) trains; use {remedy}"):
        FlowHead(tiny_dit(), PixelCodec(4), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [DPMSolverMultistep, UniPC], ids=lambda kind: kind.__name__)
def test_orders_out_of_range_are_refused(kind: type[DPMSolverMultistep | UniPC]) -> None:
    for order in (0, 4):
        with pytest.raises(ValueError, match=rf"solver_order \({order}\)"):
            kind(solver_order=order)


class TestVPredictionHead(DiffusionHeadContract):
    def head(self) -> FlowHead:
        return FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, objective=VPrediction())


class TestUniPCHead(DiffusionHeadContract):
    def head(self) -> FlowHead:
        return FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, objective=FlowMatching(), sampler=UniPC())
