"""Sana: the contract, and that it calls diffusers' network as that is meant to be called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.diffusion import Sana
from tests.diffusion.contract import DenoiserContract
from tests.tiny import COND_DIM, perturbed, tiny_sana


class TestSana(DenoiserContract):
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


def test_from_pretrained_reads_a_diffusers_folder(tmp_path: Path) -> None:
    denoiser = TestSana().denoiser()
    denoiser.transformer.save_pretrained(tmp_path / "transformer")
    again = Sana.from_pretrained(str(tmp_path), subfolder="transformer").eval()
    inputs = TestSana().inputs(denoiser)
    assert torch.equal(again(*inputs), denoiser(*inputs))
    assert again.config()["init_args"]["config"]["caption_channels"] == COND_DIM
    with pytest.raises(OSError):
        Sana.from_pretrained(str(tmp_path / "none"))


def test_from_pretrained_lists_weights_that_are_missing(tmp_path: Path) -> None:
    tiny_sana().transformer.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["proj_out.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"proj_out\.weight"):
        Sana.from_pretrained(str(tmp_path))
