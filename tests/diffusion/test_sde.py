"""FlowMatchSDE: Euler's method without noise, the flow's marginals with it, probabilities as of torch's Normal."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.distributions import Normal

from blip3o.diffusion import FlowHead, FlowMatchEuler, FlowMatching, FlowMatchSDE, PixelCodec, VPrediction
from blip3o.diffusion.sde import Transition, transition
from tests.diffusion.contract import DiffusionHeadContract, condition
from tests.diffusion.test_samplers import FLOW, MEAN, NOISE, SHIFTED, STD, gaussian
from tests.tiny import generators, rebuilt, tiny_dit


def head(objective: FlowMatching = SHIFTED, **arguments: object) -> FlowHead:
    return FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, objective=objective, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [FLOW, SHIFTED, FlowMatching(shift=3.3)], ids=["flow", "3", "3.3"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_without_noise_it_is_euler_to_the_bit(objective: FlowMatching, steps: int) -> None:
    drawn = [
        head(objective, sampler=sampler).sample(condition(24), num_inference_steps=steps, generator=generators(2))
        for sampler in (FlowMatchEuler(), FlowMatchSDE(noise_level=0.0))
    ]
    assert torch.equal(*drawn)


def test_the_log_probability_is_that_of_normal() -> None:
    source = torch.Generator().manual_seed(0)
    mean, latents = (torch.randn(3, 2, 4, 4, generator=source, dtype=torch.float64) for _ in range(2))
    std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    expected = Normal(mean, std[:, None, None, None].expand_as(mean)).log_prob(latents).mean((1, 2, 3))
    torch.testing.assert_close(Transition(mean, std).log_prob(latents), expected, rtol=1e-12, atol=0)


def test_a_step_is_the_paper_s_formula() -> None:
    """Number by number, each row with levels of its own."""
    source = torch.Generator().manual_seed(0)
    x, v = (torch.randn(2, 1, 2, 2, generator=source, dtype=torch.float64) for _ in range(2))
    levels = [(0.8, 0.65), (0.3, 0.1)]
    sigma, after = torch.tensor(levels, dtype=torch.float64).unbind(1)
    step = transition(x, v, sigma, after, 0.7)
    for row, (t, s) in enumerate(levels):
        dt = s - t
        noise = 0.7 * (t / (1 - t)) ** 0.5
        assert float(step.std[row]) == pytest.approx(noise * (t - s) ** 0.5, rel=1e-12)
        for a, b, mean in zip(x[row].flatten(), v[row].flatten(), step.mean[row].flatten(), strict=True):
            score = -(a + (1 - t) * b) / t
            assert float(mean) == pytest.approx(float(a + (b - noise**2 / 2 * score) * dt), rel=1e-12)


def test_both_ends_are_guarded() -> None:
    """The first step takes 1 - t where it ends; the last adds no noise, and one step alone is the last."""
    one, x = torch.ones(1), NOISE[:1]
    first = transition(x, x, one, torch.tensor([0.9]), 0.7)
    assert float(first.std) == pytest.approx(0.7 * (1 / 0.1) ** 0.5 * 0.1**0.5, rel=1e-5)
    almost = transition(x, x, one - 1e-7, torch.tensor([0.9]), 0.7)  # as rounding leaves a shifted level
    torch.testing.assert_close(almost.mean, first.mean)
    last = transition(x, x, torch.tensor([0.1]), torch.zeros(1), 0.7)
    assert float(last.std) == 0 and torch.allclose(last.mean, 0.9 * x)
    assert float(transition(x, x, one, torch.zeros(1), 0.7).std) == 0
    for objective in (FLOW, SHIFTED, FlowMatching(shift=3.3)):
        for steps in (1, 2, 10):
            path = list(FlowMatchSDE().walk(gaussian(objective), NOISE, objective, steps, generators(2)))
            assert len(path) == steps and all(one.next_latents.isfinite().all() for one in path)
            assert [bool((one.transition.std > 0).all()) for one in path] == [True] * (steps - 1) + [False]
            assert torch.equal(path[-1].next_latents, path[-1].transition.mean)


def moments(steps: int, noise_level: float, objective: FlowMatching) -> list[tuple[float, float, float]]:
    """Level, mean and variance after every step but the last for Gaussian data, exactly: its steps are affine."""
    scheduler, _ = FlowMatchEuler().start(objective, steps, torch.device("cpu"))
    predict, mean, variance, told = gaussian(objective), 0.0, 1.0, []
    for sigma, after in pairwise(scheduler.sigmas[:-1].double()):
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None]
        levels = sigma.expand(2), after.expand(2)
        step = transition(x, predict(x, levels[0]), *levels, noise_level)
        offset, moved = step.mean.flatten().tolist()
        mean, variance = offset + (moved - offset) * mean, (moved - offset) ** 2 * variance + float(step.std[0]) ** 2
        told.append((float(after), mean, variance))
    return told


@pytest.mark.parametrize("objective", [FLOW, SHIFTED], ids=["flow", "shifted"])
@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.0])
def test_moments_converge_to_those_of_the_flow(noise_level: float, objective: FlowMatching) -> None:
    """At levels up to a half; at those next to 1 too much variance stays, as documented, and no mean is off."""

    def error(steps: int) -> float:
        told = [
            (t, abs(mean - (1 - t) * MEAN), abs(variance - (1 - t) ** 2 * STD**2 - t**2))
            for t, mean, variance in moments(steps, noise_level, objective)
        ]
        assert max(mean for _, mean, _ in told) < 1e-4 and max(one for *_, one in told) < 0.5 * noise_level**3
        assert told[0][2] == pytest.approx(noise_level**4 / 4, abs=4 / steps)
        return max(one for t, _, one in told if t <= 0.5)

    coarse, fine, finest = (error(steps) for steps in (25, 100, 400))
    assert coarse > 1.5 * fine > 2.25 * finest and finest < 0.01


def test_samples_are_distributed_as_those_of_the_flow() -> None:
    """Kolmogorov-Smirnov at several levels; the drift of the flow alone with the same noise is told apart."""
    rows = 4000
    noise = torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    path = list(FlowMatchSDE().walk(gaussian(FLOW), noise, FLOW, 300, torch.Generator().manual_seed(2)))
    for number in (50, 150, 250, 299):
        t = float(path[number].next_sigma)
        exact = Normal((1 - t) * MEAN, ((1 - t) ** 2 * STD**2 + t**2) ** 0.5)
        drawn = path[number].next_latents.flatten()
        assert kstest(drawn.numpy(), lambda x, exact=exact: exact.cdf(torch.from_numpy(x)).numpy()).pvalue > 0.01, t
    # Not the flow's own path: what a picture becomes is drawn on the way.
    together = torch.stack([noise.flatten(), path[-1].next_latents.flatten()])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.2

    wrong, source = noise, torch.Generator().manual_seed(3)
    for step in path:
        velocity = gaussian(FLOW)(wrong, step.sigma.expand(rows))
        spread = step.transition.std[:, None, None, None]
        wrong = wrong + (step.next_sigma - step.sigma) * velocity + spread * torch.randn(wrong.shape, generator=source)
    assert kstest(wrong.flatten().numpy(), lambda x: Normal(MEAN, STD).cdf(torch.from_numpy(x)).numpy()).pvalue < 1e-6


def test_a_list_of_generators_draws_every_row_alone() -> None:
    both = FlowMatchSDE().run(gaussian(FLOW), NOISE, FLOW, 5, generators(2))
    alone = [FlowMatchSDE().run(gaussian(FLOW), NOISE[row : row + 1], FLOW, 5, generators(1, row)) for row in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-6)
    again = FlowMatchSDE().run(gaussian(FLOW), NOISE, FLOW, 5, generators(2, first_seed=7))
    assert (both - again).abs().max() > 0.1
    half = FlowMatchSDE().run(gaussian(FLOW), NOISE.half(), FLOW, 5, generators(2))
    assert half.dtype == torch.float16 and (half - both).abs().max() < 0.01


@pytest.mark.parametrize("noise_level", [-0.1, float("inf"), float("nan")])
def test_noise_levels_that_make_no_sense_are_refused(noise_level: float) -> None:
    with pytest.raises(ValueError, match=r"noise_level \(.*\) must be at least 0 and finite; 0 adds no noise"):
        FlowMatchSDE(noise_level=noise_level)


def test_only_flow_matching_is_sampled() -> None:
    given = head(sampler=FlowMatchSDE(noise_level=0.3))
    assert rebuilt(given).config() == given.config()
    with pytest.raises(ValueError, match=r"sampler \(FlowMatchSDE\) does not sample what objective \(VPrediction\)"):
        FlowHead(tiny_dit(), PixelCodec(4), image_size=32, objective=VPrediction(), sampler=FlowMatchSDE())


def test_a_head_predicts_by_another_denoiser_where_one_is_given() -> None:
    own, other = head(), tiny_dit(cond_grid=4, seed=1)
    levels, given = torch.tensor([0.5, 0.9]), condition(24)
    latents = torch.randn(2, *own.latent_shape, generator=torch.Generator().manual_seed(0))
    predicted: Tensor = own.guided(given, denoiser=other)(latents, levels)
    assert torch.equal(predicted, other(latents, levels, given))
    assert not torch.equal(predicted, own.guided(given)(latents, levels))


class TestSDEHead(DiffusionHeadContract):
    def head(self) -> FlowHead:
        return head(FLOW, sampler=FlowMatchSDE())

    def test_given_noise_takes_the_place_of_drawing_it(self) -> None:
        """The generators draw the noise of the steps all the same."""
        noise = NOISE.new_ones(2, 48, 8, 8)
        first, again, other = (self.sample(self.head(), latents=noise, generator=generators(2, s)) for s in (0, 0, 5))
        assert torch.equal(first, again) and not torch.allclose(first, other)
        assert (noise == 1).all(), "the caller's noise was changed"
