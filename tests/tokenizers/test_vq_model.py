"""DiffusersVQ: the contract, diffusers' own numbers, and reading a diffusers folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.tokenizers import DiffusersVQ
from tests.tiny import perturbed, seeded, tiny_images
from tests.tokenizers.contract import TrainableTokenizerContract

CONFIG = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 6,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 32,
    "norm_num_groups": 4,
    "sample_size": 32,
}


def tiny(**config: object) -> DiffusersVQ:
    with seeded(0):
        return perturbed(DiffusersVQ({**CONFIG, **config}), std=0.3).eval()


class TestDiffusersVQ(TrainableTokenizerContract):
    def tokenizer(self) -> DiffusersVQ:
        return tiny()


@torch.no_grad()
def test_ids_codes_and_pixels_are_diffusers_own() -> None:
    tokenizer, images = tiny(), tiny_images(2)
    latents = tokenizer.vq.encode(images).latents
    codes, _, (_, _, ids) = tokenizer.vq.quantize(latents)
    tokens = tokenizer.encode(images)
    assert tokens.grid == (8, 8) and len(ids.unique()) > 3
    assert torch.equal(tokens.ids, ids.view(2, 64))
    torch.testing.assert_close(tokens.features, codes.flatten(2).mT)
    torch.testing.assert_close(tokenizer.decode(tokens.ids), tokenizer.vq.decode(latents).sample.clamp(-1, 1))
    tokenizer.vq.quantize.legacy = False
    torch.testing.assert_close(tokens.loss, tokenizer.vq.quantize(latents)[1])


@torch.no_grad()
def test_a_decoder_that_is_told_the_codes_and_a_model_that_decodes_ids_give_diffusers_own_pixels() -> None:
    """MoVQ's spatial norm, and `lookup_from_codebook`."""
    wide = {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_type": "spatial",
        "lookup_from_codebook": True,
    }
    tokenizer = tiny(**wide)
    ids = torch.randint(32, (2, 256), generator=torch.Generator().manual_seed(0))
    pixels = tokenizer.vq.decode(ids, force_not_quantize=True, shape=(2, 16, 16, 4)).sample
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(tokenizer.decode(ids), pixels.clamp(-1, 1), rtol=0, atol=1e-4)


def test_a_diffusers_folder_is_read_and_checked(tmp_path: Path) -> None:
    source, images = tiny(), tiny_images(2)
    source.vq.save_pretrained(tmp_path)
    read = DiffusersVQ.from_pretrained(str(tmp_path)).eval()
    assert read.image_size == 32
    assert torch.equal(read.encode(images).ids, source.encode(images).ids)
    assert DiffusersVQ.from_pretrained(str(tmp_path), image_size=64).num_tokens() == 256
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state.pop("quantize.embedding.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: quantize\.embedding\.weight"):
        DiffusersVQ.from_pretrained(str(tmp_path))


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"config holds keys .* num_vq_embedings; did you mean num_vq_embeddings"):
        DiffusersVQ({**CONFIG, "num_vq_embedings": 8})
    with pytest.raises(ValueError, match=r"image_size \(30\) must be a multiple of 4"):
        DiffusersVQ(CONFIG, image_size=30)
