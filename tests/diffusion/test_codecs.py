"""Codecs: the contract, and what is special to each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.diffusion import DCAE, KLCodec, PixelCodec
from tests.diffusion.contract import CodecContract, counting
from tests.tiny import rebuilt, tiny_dcae, tiny_images, tiny_kl


class TestDCAE(CodecContract):
    def codec(self) -> DCAE:
        return tiny_dcae()


class TestKLCodec(CodecContract):
    def codec(self) -> KLCodec:
        return tiny_kl().eval()


class TestPixelCodec(CodecContract):
    def codec(self) -> PixelCodec:
        return PixelCodec(patch_size=4)


class TestSinglePixelCodec(CodecContract):
    def codec(self) -> PixelCodec:
        return PixelCodec()


@pytest.mark.parametrize("patch_size", [1, 2, 8])
def test_pixel_codec_is_an_exact_inverse_of_itself(patch_size: int) -> None:
    codec, images = PixelCodec(patch_size), tiny_images(2)
    assert torch.equal(codec.decode(codec.encode(images)), images)
    latents = torch.rand(2, 3 * patch_size**2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(codec.encode(codec.decode(latents)), latents)


def test_pixel_codec_keeps_patches_at_their_place() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[..., 8:12, 20:24] = 1.0
    places = PixelCodec(4).encode(images).abs().amax(dim=1)[0].nonzero()
    assert places.tolist() == [[2, 5]]


def test_patches_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_size \(0\)"):
        PixelCodec(0)


def test_the_factors_of_the_diffusers_configs_are_read() -> None:
    dcae, kl = tiny_dcae(), tiny_kl()
    assert (dcae.scaling_factor, dcae.shift_factor) == (0.5, 0.0)
    torch.testing.assert_close(torch.stack([kl.scaling_factor, kl.shift_factor]), torch.tensor([0.7, 0.1]))
    assert DCAE(dcae.init_args["config"], scaling_factor=0.25).scaling_factor == 0.25


@pytest.mark.parametrize("build", [tiny_dcae, tiny_kl])
def test_from_pretrained_reads_a_diffusers_folder(build, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    codec = build().eval()
    codec.vae.save_pretrained(tmp_path / "vae")
    built: list[object] = []
    monkeypatch.setattr(type(codec).library, "from_config", counting(type(codec).library.from_config, built))
    again = type(codec).from_pretrained(str(tmp_path), subfolder="vae").eval()
    assert len(built) == 1, "diffusers itself builds the weights"
    assert torch.equal(again.encode(tiny_images(1)), codec.encode(tiny_images(1)))
    assert not again.scaling_factor.is_meta and rebuilt(again).config() == again.config()
    assert again.config()["init_args"]["config"]["latent_channels"] == 4
    with pytest.raises(OSError):
        type(codec).from_pretrained(str(tmp_path / "none"))


@pytest.mark.parametrize("build", [tiny_dcae, tiny_kl])
def test_from_pretrained_lists_weights_that_are_missing_or_unexpected(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    codec = build()
    codec.vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    lost = next(iter(state))
    state["stray.weight"] = state.pop(lost)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        type(codec).from_pretrained(str(tmp_path))
    assert lost in str(error.value) and "stray.weight" in str(error.value)


def test_dcae_in_tiles_is_near_the_whole() -> None:
    codec = tiny_dcae().eval()
    latents = torch.randn(1, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents)
    codec.enable_tiling()
    assert torch.equal(codec.decode(latents), whole), "it fits into one tile"
    codec.vae.enable_tiling(32, 32, 16, 16)
    tiled = codec.decode(latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()
    assert codec.encode(whole).shape == latents.shape


def test_kl_in_tiles_is_near_the_whole() -> None:
    codec = tiny_kl().eval()
    latents = torch.randn(1, 4, 48, 40, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents)
    codec.enable_tiling()
    tiled = codec.decode(latents)
    assert codec.vae.tile_latent_min_size < 40
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


def test_patches_of_pixels_have_no_tiles() -> None:
    with pytest.raises(ValueError, match="PixelCodec works on no tiles; leave tiling off"):
        PixelCodec().enable_tiling()
