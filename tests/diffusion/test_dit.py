"""DiT: the contract, where its positions are, and that it starts at zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from blip3o.diffusion import DiT
from blip3o.diffusion.sinusoids import sincos_2d
from blip3o.structures import Conditioning
from tests.diffusion.contract import DenoiserContract, condition
from tests.tiny import rebuilt, tiny_dit, tiny_head


class TestPlain(DenoiserContract):
    def denoiser(self) -> DiT:
        return tiny_dit(latent_channels=4)


class TestConditionGrid(DenoiserContract):
    """16 of the 17 condition positions form a grid."""

    def denoiser(self) -> DiT:
        return tiny_dit(latent_channels=4, cond_grid=4, depth=2)


class TestPatches(DenoiserContract):
    def denoiser(self) -> DiT:
        return tiny_dit(latent_channels=4, patch_size=2)


def test_an_untrained_dit_predicts_zero() -> None:
    denoiser = DiT(latent_channels=4, latent_size=8, cond_dim=24, width=32, depth=1)
    prediction = denoiser(torch.randn(2, 4, 8, 8), torch.tensor([0.1, 0.9]), condition(24))
    assert torch.equal(prediction, torch.zeros(2, 4, 8, 8))


def test_without_a_grid_the_order_of_the_condition_does_not_matter_and_with_one_it_does() -> None:
    latents, sigma, cond = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), condition(24, rows=1)
    turned = Conditioning(cond.embeds.flip(1), cond.mask)
    plain, placed = tiny_dit(latent_channels=4), tiny_dit(latent_channels=4, cond_grid=4)
    torch.testing.assert_close(plain(latents, sigma, turned), plain(latents, sigma, cond), rtol=0, atol=1e-5)
    assert (placed(latents, sigma, turned) - placed(latents, sigma, cond)).abs().max() > 1e-3


def test_the_grid_is_the_end_of_the_condition() -> None:
    """A position before the grid carries no place: two such positions may change places, two of the grid may not."""
    denoiser = tiny_dit(latent_channels=4, cond_grid=4)
    latents, sigma, cond = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), condition(24, rows=1, positions=18)
    order = torch.arange(18)
    for swapped, same in (((0, 1), True), ((1, 2), False), ((16, 17), False)):
        turned = order.clone()
        turned[list(swapped)] = order[list(swapped[::-1])]
        other = denoiser(latents, sigma, Conditioning(cond.embeds[:, turned], cond.mask))
        assert torch.allclose(other, denoiser(latents, sigma, cond), rtol=0, atol=1e-5) is same


def test_a_condition_shorter_than_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"15 positions, but cond_grid \(4\)"):
        tiny_dit(cond_grid=4)(torch.zeros(1, 48, 8, 8), torch.ones(1), condition(24, rows=1, positions=15))


def test_the_grid_stands_before_what_follows_the_bridges_positions() -> None:
    """Whole grids of reference latents carry their own places, other positions that follow carry none."""
    denoiser = tiny_dit(latent_channels=4, cond_grid=4)
    latents, sigma, cond = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), condition(24, rows=1, positions=17)
    for count, placed in ((64, True), (128, True), (5, False)):
        more = condition(24, rows=1, positions=count, seed=3).embeds
        prediction = denoiser(latents, sigma, cond.followed_by(more))
        turned = denoiser(latents, sigma, cond.followed_by(more.flip(1)))
        assert ((turned - prediction).abs().max() > 1e-3) == placed
        masked = Conditioning(cond.embeds, cond.full_mask()).followed_by(more)
        assert masked.mask is not None
        masked.mask[:, 17:] = False
        without = denoiser(latents, sigma, cond)
        torch.testing.assert_close(denoiser(latents, sigma, masked), without, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"15 positions, but cond_grid \(4\)"):
        denoiser(latents, sigma, condition(24, rows=1, positions=15).followed_by(more))


def test_beside_a_reference_an_appended_one_has_the_places_of_a_square() -> None:
    """The weights are those of the square DiT: positions hold none."""
    square, oblong = (tiny_dit(latent_channels=4, cond_grid=4, latent_size=size) for size in (8, (8, 16)))
    oblong.load_state_dict(square.state_dict())
    assert rebuilt(oblong).latent_shape == (4, 8, 16)
    cond = condition(24, rows=1, positions=17)
    more = condition(24, rows=1, positions=64, seed=3).embeds
    latents, sigma = torch.randn(1, 4, 8, 16), torch.tensor([0.5])
    prediction = oblong(latents, sigma, cond.followed_by(more))
    assert (oblong(latents, sigma, cond.followed_by(more.flip(1))) - prediction).abs().max() > 1e-3
    assert (oblong(latents.flip(3), sigma, cond.followed_by(more)).flip(3) - prediction).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"latent_size \(8 x 16\) is not that of 8 x 8 latents; set it to 8."):
        oblong.check_latents(4, 8, 8)


def test_built_for_a_reference_beside_it_draws_without_one_as_the_square_dit_does() -> None:
    square, oblong = (tiny_dit(latent_channels=4, cond_grid=4, latent_size=size) for size in (8, (8, 16)))
    oblong.load_state_dict(square.state_dict())
    cond, latents, sigma = condition(24, rows=1, positions=17), torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    torch.testing.assert_close(oblong(latents, sigma, cond), square(latents, sigma, cond), rtol=0, atol=0)
    for wrong in (latents[..., :4], latents[:, :, :4], latents[:, :2]):
        with pytest.raises(ValueError, match="set latent_channels and latent_size to the codec's"):
            oblong(wrong, sigma, cond)


def test_a_head_says_which_conditions_its_denoiser_takes() -> None:
    placed, plain = tiny_head(tiny_dit(cond_grid=4)), tiny_head(tiny_dit())
    for count in (16, 17):
        placed.check_condition(count)
    for count in (None, 0, 15, 18, 64):
        plain.check_condition(count)
        told = f"{count} positions" if count is not None else "a number of positions that varies"
        with pytest.raises(ValueError, match=rf"has {told}, but cond_grid \(4\) needs 16, or one more"):
            placed.check_condition(count)


def test_positions_are_all_different_and_nearest_to_their_neighbours() -> None:
    positions = sincos_2d(8, 8, 32)
    assert positions.shape == (64, 32)
    similarity = cosine_similarity(positions[:, None], positions[None], dim=-1).fill_diagonal_(-1)
    nearest = similarity[3 * 8 + 4].topk(4).indices.tolist()
    assert sorted(nearest) == [2 * 8 + 4, 3 * 8 + 3, 3 * 8 + 5, 4 * 8 + 4]
    assert similarity.max() < 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 30, "num_heads": 3}, r"width \(30\)"),
        ({"width": 32, "num_heads": 3}, r"num_heads \(3\)"),
        ({"patch_size": 3}, r"patch_size \(3\) must divide latent_size \(8\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_dit(**arguments)


def test_latents_of_another_size_are_refused() -> None:
    for shape in ((1, 48, 4, 4), (1, 16, 8, 8)):
        with pytest.raises(ValueError, match=r"latents has shape .*; this DiT takes \('B', 48, 8, 8\)"):
            tiny_dit()(torch.zeros(shape), torch.ones(1), condition(24, rows=1))
