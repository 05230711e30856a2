"""Guidance: the formula, and both branches seeing their own condition."""

from __future__ import annotations

import pytest
import torch

from blip3o.diffusion.guidance import Guidance
from tests.diffusion.contract import condition
from tests.tiny import tiny_dit

LATENTS = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.3, 0.7])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_the_prediction_is_extrapolated_from_the_unconditional_one(scale: float) -> None:
    denoiser, cond, negative = tiny_dit(), condition(24, seed=1), condition(24, seed=2)
    conditional, unconditional = denoiser(LATENTS, SIGMA, cond), denoiser(LATENTS, SIGMA, negative)
    assert (conditional - unconditional).abs().max() > 1e-2
    guided = Guidance(denoiser, cond, negative, scale)(LATENTS, SIGMA)
    torch.testing.assert_close(guided, (1 - scale) * unconditional + scale * conditional, rtol=0, atol=1e-4)


def test_scale_one_needs_no_negative_and_runs_one_branch() -> None:
    denoiser, cond = tiny_dit(), condition(24)
    rows = []
    denoiser.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    guided = Guidance(denoiser, cond, None, 1.0)(LATENTS, SIGMA)
    assert rows == [2]
    assert torch.equal(guided, denoiser(LATENTS, SIGMA, cond))


def test_impossible_scales_and_a_missing_negative_are_refused() -> None:
    with pytest.raises(ValueError, match=r"guidance_scale \(-0.1\) must be at least 0"):
        Guidance(tiny_dit(), condition(24), condition(24), -0.1)
    for scale in (0.0, 3.0):
        with pytest.raises(ValueError, match="needs a negative condition"):
            Guidance(tiny_dit(), condition(24), None, scale)
