"""Sana: the contract, and that it calls diffusers' network as that is meant to be called."""

from __future__ import annotations

import torch

from blip3o.diffusion import Sana
from tests.diffusion.contract import DiffusersDenoiserContract
from tests.tiny import COND_DIM, perturbed, tiny_sana


class TestSana(DiffusersDenoiserContract):
    def denoiser(self) -> Sana:
        return perturbed(tiny_sana()).eval()


def test_sizes_are_read_from_the_config() -> None:
    denoiser = tiny_sana(in_channels=6, out_channels=6)
    assert (denoiser.latent_channels, denoiser.cond_dim) == (6, COND_DIM)


def test_a_full_mask_equals_no_mask_and_time_counts_in_thousandths() -> None:
    denoiser = TestSana().denoiser()
    latents, sigma, cond = TestSana().inputs(denoiser)
    expected = denoiser.transformer(
        hidden_states=latents, encoder_hidden_states=cond.embeds, timestep=torch.tensor([200.0, 900.0])
    ).sample
    torch.testing.assert_close(denoiser(latents, sigma, cond), expected, rtol=0, atol=1e-5)
