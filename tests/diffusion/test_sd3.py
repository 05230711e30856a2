"""SD3: the contract, its masked joint attention against diffusers' own, and its pooled condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0

from blip3o.diffusion import SD3
from blip3o.structures import Conditioning
from tests.diffusion.contract import DiffusersDenoiserContract
from tests.tiny import COND_DIM, perturbed, seeded


def sd3(**config: Any) -> SD3:
    """SD3 on 4-channel 8x8 latents, as it is built."""
    values: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "joint_attention_dim": COND_DIM,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 8,
        "sample_size": 8,
        "patch_size": 2,
    }
    with seeded():
        return SD3(values | config)


class TestSD3(DiffusersDenoiserContract):
    def denoiser(self) -> SD3:
        return perturbed(sd3()).eval()


class TestSD35(DiffusersDenoiserContract):
    """With normalised queries and keys, and attention among the latents alone besides, as in SD3.5."""

    def denoiser(self) -> SD3:
        return perturbed(sd3(qk_norm="rms_norm", dual_attention_layers=[0])).eval()


CASES = pytest.mark.parametrize("case", [TestSD3, TestSD35], ids=["sd3", "sd35"])


def test_sizes_are_read_from_the_config() -> None:
    assert (sd3().latent_channels, sd3().cond_dim) == (4, COND_DIM)


@CASES
def test_without_a_mask_it_is_diffusers_own_network_with_the_projected_mean(case: type[TestSD3]) -> None:
    denoiser = case().denoiser()
    latents, sigma, cond = case().inputs(denoiser)
    actual = denoiser(latents, sigma, cond)
    denoiser.transformer.set_attn_processor(JointAttnProcessor2_0())
    pooled = denoiser.pooled_proj(cond.embeds.mean(dim=1))
    expected = denoiser.transformer(latents, cond.embeds, pooled, torch.tensor([200.0, 900.0])).sample
    assert torch.equal(actual, expected)


@CASES
def test_a_full_mask_changes_nothing(case: type[TestSD3]) -> None:
    denoiser = case().denoiser()
    latents, sigma, cond = case().inputs(denoiser)
    masked = denoiser(latents, sigma, Conditioning(cond.embeds, cond.full_mask()))
    torch.testing.assert_close(masked, denoiser(latents, sigma, cond), rtol=0, atol=1e-5)


@CASES
def test_a_masked_row_is_what_it_is_without_those_positions(case: type[TestSD3]) -> None:
    denoiser = case().denoiser()
    latents, sigma, cond = case().inputs(denoiser)
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[0, [0, 5, 6]] = False
    mask[1, 16] = False
    actual = denoiser(latents, sigma, Conditioning(cond.embeds, mask))
    for row in range(2):
        kept = Conditioning(cond.embeds[row : row + 1, mask[row]])
        alone = denoiser(latents[row : row + 1], sigma[row : row + 1], kept)
        torch.testing.assert_close(actual[row : row + 1], alone, rtol=0, atol=1e-5)


def test_the_pooled_condition_starts_at_zero_and_can_be_learnt() -> None:
    denoiser = sd3()
    latents, sigma, cond = TestSD3().inputs(denoiser)
    assert torch.equal(denoiser.pooled_proj(cond.embeds.mean(dim=1)), torch.zeros(2, 12))
    perturbed(denoiser.transformer)
    denoiser(latents, sigma, cond).square().mean().backward()
    assert denoiser.pooled_proj.weight.grad is not None and denoiser.pooled_proj.weight.grad.abs().max() > 0
