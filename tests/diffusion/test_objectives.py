"""VPrediction: its process against the formulas, diffusers' scheduler, and training."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from blip3o.diffusion import FlowHead, PixelCodec, VPrediction
from tests.diffusion.contract import condition
from tests.tiny import generators, rebuilt, tiny_dit, tiny_images

CASES = [
    VPrediction(),
    VPrediction(beta_schedule="linear"),
    VPrediction(beta_schedule="linear", zero_terminal_snr=True),
]
IDS = ["cosine", "linear", "zero-snr"]
LATENTS = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([0, 333, 999])


@pytest.mark.parametrize("objective", CASES, ids=IDS)
def test_mixture_and_target_are_those_of_diffusers(objective: VPrediction) -> None:
    scheduler = DDIMScheduler(**objective.process, prediction_type="v_prediction")
    level = TIMES / 1000
    mixed = scheduler.add_noise(LATENTS, NOISE, TIMES)
    torch.testing.assert_close(objective.add_noise(LATENTS, NOISE, level), mixed)
    target = scheduler.get_velocity(LATENTS, NOISE, TIMES)  # type: ignore[arg-type]
    torch.testing.assert_close(objective.target(LATENTS, NOISE, level), target)


@pytest.mark.parametrize("objective", CASES, ids=IDS)
def test_variance_is_preserved_and_the_target_gives_latents_and_noise_back(objective: VPrediction) -> None:
    alpha, sigma = objective.alphas[TIMES], objective.sigmas[TIMES]
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, dtype=torch.float64))
    level = TIMES / 1000
    mixed, v = objective.add_noise(LATENTS, NOISE, level), objective.target(LATENTS, NOISE, level)
    a, s = (share.float()[:, None, None, None] for share in (alpha, sigma))
    torch.testing.assert_close(a * mixed - s * v, LATENTS, rtol=0, atol=1e-5)
    torch.testing.assert_close(s * mixed + a * v, NOISE, rtol=0, atol=1e-5)


def test_the_cosine_is_a_cosine_and_zero_terminal_snr_ends_in_noise_alone() -> None:
    middle = VPrediction().alphas[499].item()
    assert abs(middle - math.cos(math.pi / 2 * 0.508 / 1.008)) < 2e-3
    assert CASES[2].alphas[-1] == 0 < CASES[1].alphas[-1] < 0.01
    assert torch.equal(CASES[2].add_noise(LATENTS, NOISE, torch.full((3,), 0.999)), NOISE)


def test_levels_are_whole_times_over_a_thousand() -> None:
    objective = VPrediction()
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    drawn = objective.draw_levels(500, torch.Generator().manual_seed(0), torch.device("cpu"))
    torch.testing.assert_close(drawn, (u * 1000).floor() / 1000)
    every = torch.arange(1000) / 1000
    mixed = objective.add_noise(torch.ones(1000, 1, 1, 1).double(), torch.zeros(1000, 1, 1, 1).double(), every)
    assert torch.equal(mixed.flatten(), objective.alphas), "every time finds its own entry"
    middle = VPrediction(density="logit_normal").draw_levels(500, generators(1)[0], torch.device("cpu"))
    assert (middle - 0.5).abs().mean() < (drawn - 0.5).abs().mean()


def test_the_loss_is_the_mean_squared_error_of_v() -> None:
    head = FlowHead(tiny_dit(), PixelCodec(4), image_size=32, objective=VPrediction())
    images, cond = tiny_images(2), condition(24)
    loss = head.loss(images, cond, generator=generators(2))
    for row, generator in enumerate(generators(2)):
        time = (torch.rand(1, generator=generator) * 1000).long()
        latents = head.encode(images[row : row + 1])
        noise = torch.randn(latents.shape, generator=generator)
        alpha, sigma = (math.cos(angle) for angle in angles(head, time))
        v = head.denoiser(alpha * latents + sigma * noise, time / 1000, cond[row : row + 1])
        torch.testing.assert_close(loss[row], (v - (alpha * noise - sigma * latents)).square().mean())


def angles(head: FlowHead, time: torch.Tensor) -> tuple[float, float]:
    """Angles whose cosines are the shares of latents and noise, from diffusers' cosine schedule."""
    cumulative = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[time].item()
    return math.acos(math.sqrt(cumulative)), math.acos(math.sqrt(1 - cumulative))


def test_the_loss_on_one_batch_falls_and_the_samples_come_near_the_images() -> None:
    head = FlowHead(tiny_dit(), PixelCodec(4), image_size=32, objective=VPrediction())
    images, cond = tiny_images(2), condition(24)
    before = (head.decode(head.sample(cond, num_inference_steps=8, generator=generators(2))) - images).square().mean()
    optimizer = torch.optim.AdamW(head.denoiser.parameters(), lr=1e-2)
    losses = []
    for step in range(80):
        loss = head.loss(images, cond, generator=generators(2, 2 * (step % 8))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    after = (head.decode(head.sample(cond, num_inference_steps=8, generator=generators(2))) - images).square().mean()
    assert after < before / 2


def test_its_config_builds_it_again() -> None:
    objective = VPrediction(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True)
    again = rebuilt(objective)
    assert again.config() == objective.config()
    assert torch.equal(again.alphas, objective.alphas)


def test_names_and_betas_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"beta_schedule \('cosine'\)"):
        VPrediction(beta_schedule="cosine")  # type: ignore[arg-type]
    for start, end in ((0.0, 0.02), (0.02, 0.02), (0.1, 1.0)):
        with pytest.raises(ValueError, match=rf"beta_start \({start}\) and beta_end \({end}\)"):
            VPrediction(beta_start=start, beta_end=end)
    with pytest.raises(ValueError, match="density"):
        VPrediction(density="normal")  # type: ignore[arg-type]
