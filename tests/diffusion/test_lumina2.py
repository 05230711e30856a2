"""Lumina2: the contract, its time and sign, and where it reads the condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blip3o.diffusion import Lumina2
from blip3o.structures import Conditioning
from tests.diffusion.contract import DiffusersDenoiserContract, condition
from tests.tiny import COND_DIM, perturbed, seeded, tiny_dcae, tiny_head


def tiny_lumina2(**config: Any) -> Lumina2:
    """Lumina 2 on 4-channel 8x8 latents and up to 31 condition positions."""
    values: dict[str, Any] = {
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": [4, 4, 4],
        "axes_lens": [32, 8, 8],
        "cap_feat_dim": COND_DIM,
        "sample_size": 8,
        "patch_size": 2,
    }
    with seeded():
        return perturbed(Lumina2(values | config)).eval()


class TestLumina2(DiffusersDenoiserContract):
    def denoiser(self) -> Lumina2:
        return tiny_lumina2()


def test_sizes_are_read_from_the_config() -> None:
    assert (tiny_lumina2().latent_channels, tiny_lumina2().cond_dim) == (4, COND_DIM)


def test_time_runs_from_noise_to_image_and_the_prediction_is_turned_round() -> None:
    denoiser = tiny_lumina2()
    latents, sigma, cond = TestLumina2().inputs(denoiser)
    expected = denoiser.transformer(latents, torch.tensor([0.8, 0.1]), cond.embeds, cond.full_mask()).sample
    torch.testing.assert_close(denoiser(latents, sigma, cond), -expected, rtol=0, atol=1e-5)


def test_counted_positions_keep_their_order_wherever_the_others_are() -> None:
    denoiser = tiny_lumina2()
    latents, sigma, cond = TestLumina2().inputs(denoiser)
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[0, [0, 5, 6]] = False
    mask[1, 16] = False
    actual = denoiser(latents, sigma, Conditioning(cond.embeds, mask))
    for row in range(2):
        kept = Conditioning(cond.embeds[row : row + 1, mask[row]])
        alone = denoiser(latents[row : row + 1], sigma[row : row + 1], kept)
        torch.testing.assert_close(actual[row : row + 1], alone, rtol=0, atol=1e-5)


def test_latents_that_are_not_contiguous_are_taken() -> None:
    denoiser = tiny_lumina2()
    latents, sigma, cond = TestLumina2().inputs(denoiser)
    turned = latents.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    assert torch.equal(denoiser(turned, sigma, cond), denoiser(latents, sigma, cond))


def test_more_positions_than_the_network_has_are_refused() -> None:
    denoiser = tiny_lumina2()
    latents, sigma, _ = TestLumina2().inputs(denoiser)
    denoiser(latents, sigma, condition(COND_DIM, positions=31))
    message = r"axes_lens \(\[32, 8, 8\]\) is too small for a condition of 32 positions; .* \[33, 8, 8\]"
    with pytest.raises(ValueError, match=message):
        denoiser(latents, sigma, condition(COND_DIM, positions=32))
    with pytest.raises(ValueError, match=message):
        tiny_head(denoiser, tiny_dcae()).check_condition(32)
    with pytest.raises(ValueError, match=r"16 x 4 patches; .* \[32, 16, 8\]"):
        denoiser(torch.zeros(2, 4, 32, 8), sigma, condition(COND_DIM))
