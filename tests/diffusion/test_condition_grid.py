"""cond_grid of the denoisers around diffusers' networks: places of the condition, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from blip3o.diffusion.condition_grid import ConditionGrid
from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sana import tiny_sana
from tests.diffusion.test_sd3 import sd3
from tests.tiny import COND_DIM

DENOISERS: list[Callable[[], DiffusersDenoiser]] = [tiny_pixart, tiny_sana, sd3, tiny_lumina2]


def with_grid(build: Callable[[], DiffusersDenoiser], side: int) -> DiffusersDenoiser:
    """The same weights, told of places."""
    plain = build()
    placed = type(plain)(plain.init_args["config"], cond_grid=side).eval()
    placed.load_state_dict(plain.state_dict())
    return placed


def inputs(denoiser: DiffusersDenoiser, count: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, denoiser.latent_channels, 8, 8, generator=generator)
    embeds = torch.randn(2, count, COND_DIM, generator=generator)
    return latents, torch.tensor([0.2, 0.9]), Conditioning(embeds)


@pytest.mark.parametrize("build", DENOISERS[:3])
def test_only_with_a_grid_does_the_order_of_the_condition_matter(build: Callable[[], DiffusersDenoiser]) -> None:
    """Attention over a condition is blind to its order; what Lumina 2 reads is a sequence."""
    for denoiser, matters in ((build(), False), (with_grid(build, 3), True)):
        latents, sigma, condition = inputs(denoiser, 9)
        turned = replace(condition, embeds=condition.embeds.flip(1))
        with torch.no_grad():
            one, other = denoiser(latents, sigma, condition), denoiser(latents, sigma, turned)
        assert ((one - other).abs().max() > 1e-4) == matters


@pytest.mark.parametrize("build", DENOISERS)
def test_the_network_reads_the_condition_plus_twice_the_sinusoids(build: Callable[[], DiffusersDenoiser]) -> None:
    """Of 3 x 3 tokens after a scale token, which has no place, as have latents of references at the end."""
    plain, placed = build(), with_grid(build, 3)
    latents, sigma, condition = inputs(plain, 10)
    places = torch.zeros(12, COND_DIM)
    places[1:10] = 2 * ConditionGrid(3, COND_DIM).places
    longer = condition.followed_by(torch.ones(2, 2, COND_DIM))
    with torch.no_grad():
        told = placed(latents, sigma, longer)
        same = plain(latents, sigma, replace(longer, embeds=longer.embeds + places))
    torch.testing.assert_close(told, same)


def test_a_coarser_grid_stands_where_its_cells_have_their_centres() -> None:
    """Halfway between the first two of four lies the first of two, on whatever scale."""
    fine, coarse = (ConditionGrid(side, 16, latent_side=8).places for side in (8, 4))
    assert torch.equal(fine, ConditionGrid(8, 16).places)
    centres = torch.arange(4) * 2 + 0.5
    angles = centres[:, None] * torch.tensor([1.0, 100.0**-0.25, 100.0**-0.5, 100.0**-0.75])
    axis = torch.cat([angles.cos(), angles.sin()], dim=-1)
    expected = torch.cat([axis.repeat_interleave(4, dim=0), axis.repeat(4, 1)], dim=-1)
    torch.testing.assert_close(coarse[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("build", DENOISERS)
def test_a_condition_that_is_no_such_grid_is_refused(build: Callable[[], DiffusersDenoiser]) -> None:
    placed = with_grid(build, 3)
    placed.check_condition(9)
    placed.check_condition(10, (3, 3))
    for count, told in ((8, "8 positions"), (None, "a number of positions that varies")):
        with pytest.raises(ValueError, match=rf"has {told}, but cond_grid \(3\) needs 9, or one more"):
            placed.check_condition(count)
    with pytest.raises(ValueError, match=r"grid of 1 x 9 image tokens, not the 3 x 3 of cond_grid \(3\)"):
        placed.check_condition(9, (1, 9))
    latents, sigma, condition = inputs(placed, 8)
    with pytest.raises(ValueError, match=r"has 8 positions, but cond_grid \(3\) needs at least 9"):
        placed(latents, sigma, condition)


def test_sides_and_widths_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cond_grid \(0\) must be at least 1"):
        ConditionGrid(0, 16)
    with pytest.raises(ValueError, match=r"cond_grid \(3\) needs a width that is a multiple of 4, not 18"):
        ConditionGrid(3, 18)
