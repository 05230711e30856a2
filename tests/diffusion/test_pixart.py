"""PixArt: the contract, and that it calls diffusers' network as that is meant to be called."""

from __future__ import annotations

from typing import Any

import torch

from blip3o.diffusion import PixArt
from tests.diffusion.contract import DiffusersDenoiserContract
from tests.tiny import COND_DIM, perturbed, seeded


def tiny_pixart(**config: Any) -> PixArt:
    """PixArt on 4-channel 8x8 latents, with the released networks' variance channels."""
    values: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "caption_channels": COND_DIM,
        "sample_size": 8,
        "patch_size": 2,
    }
    with seeded():
        return perturbed(PixArt(values | config)).eval()


class TestPixArt(DiffusersDenoiserContract):
    def denoiser(self) -> PixArt:
        return tiny_pixart()


class TestPixArtThatIsToldTheSize(DiffusersDenoiserContract):
    """As the released PixArt-alpha at 1024 pixels."""

    def denoiser(self) -> PixArt:
        return tiny_pixart(
            use_additional_conditions=True, out_channels=4, num_attention_heads=3, cross_attention_dim=24
        )


def test_sizes_are_read_from_the_config() -> None:
    assert (tiny_pixart().latent_channels, tiny_pixart().cond_dim) == (4, COND_DIM)
    assert tiny_pixart(caption_channels=None).cond_dim == 16


def test_the_first_half_is_the_prediction_and_time_counts_in_thousandths() -> None:
    denoiser = tiny_pixart()
    latents, sigma, cond = TestPixArt().inputs(denoiser)
    whole = denoiser.transformer(
        latents, cond.embeds, torch.tensor([200.0, 900.0]), {"resolution": None, "aspect_ratio": None}
    ).sample
    assert whole.shape == (2, 8, 8, 8)
    torch.testing.assert_close(denoiser(latents, sigma, cond), whole[:, :4], rtol=0, atol=1e-5)


def test_a_network_for_128_latents_a_side_is_told_how_large_the_picture_is() -> None:
    denoiser = tiny_pixart(sample_size=128, num_attention_heads=3, cross_attention_dim=24)
    _, sigma, cond = TestPixArt().inputs(denoiser)
    latents = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    told = {"resolution": torch.tensor([[64.0, 128.0]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    expected = denoiser.transformer(latents, cond.embeds, torch.tensor([200.0, 900.0]), told).sample[:, :4]
    torch.testing.assert_close(denoiser(latents, sigma, cond), expected, rtol=0, atol=1e-5)
