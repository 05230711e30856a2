"""ConvTokenizer: the contract with every quantizer, and that it treats all places alike."""

from __future__ import annotations

import pytest
import torch

from blip3o.diffusion import PixelCodec
from blip3o.tokenizers import EMAVQ, FSQ, LFQ, ConvTokenizer, ResidualVQ, SimVQ
from tests.tiny import seeded, tiny_images, tiny_tokenizer
from tests.tokenizers.contract import TrainableTokenizerContract


def simvq(normalize: bool) -> SimVQ:
    with seeded(3):
        return SimVQ(codebook_size=32, dim=4, normalize=normalize)


class TestFSQ(TrainableTokenizerContract):
    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(FSQ([4, 3, 5]))


class TestSimVQ(TrainableTokenizerContract):
    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(simvq(normalize=False))


class TestNormalisedSimVQ(TrainableTokenizerContract):
    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(simvq(normalize=True))


class TestLFQ(TrainableTokenizerContract):
    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(LFQ(num_bits=6))


class TestBSQ(TrainableTokenizerContract):
    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(LFQ(num_bits=6, spherical=True))


class TestEMAVQ(TrainableTokenizerContract):
    """In evaluation mode: training moves the codebook between a call and the next."""

    def tokenizer(self) -> ConvTokenizer:
        with seeded(3):
            quantizer = EMAVQ(codebook_size=32, dim=4)
        return tiny_tokenizer(quantizer).eval()


class TestResidualVQ(TrainableTokenizerContract):
    """Three tokens a cell."""

    def tokenizer(self) -> ConvTokenizer:
        with seeded(3):
            quantizer = ResidualVQ(num_levels=3, level_size=8, dim=4)
        return tiny_tokenizer(quantizer).eval()


class TestLatents(TrainableTokenizerContract):
    """Over the latents of a codec: two positions a token."""

    def tokenizer(self) -> ConvTokenizer:
        return tiny_tokenizer(FSQ([4, 4]), codec=PixelCodec(patch_size=4), patch_size=2)


def test_with_a_codec_its_latents_are_what_is_reconstructed_and_it_stays_frozen() -> None:
    codec = PixelCodec(patch_size=4)
    tokenizer = tiny_tokenizer(FSQ([4, 4]), codec=codec, patch_size=2)
    images = tiny_images(2)
    latents = tokenizer.reads(images)
    assert torch.equal(latents, codec.encode(images))
    tokens = tokenizer.encode(images)
    assert tokenizer.decode_features(tokens.features).shape == latents.shape
    pixels = codec.decode(tokenizer.decode_features(tokens.features))
    torch.testing.assert_close(tokenizer.decode(tokens.ids), pixels.clamp(-1, 1))
    assert not any(p.requires_grad for p in codec.parameters())


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (-1, 1)])
def test_an_object_one_patch_further_moves_its_ids_by_one(dx: int, dy: int) -> None:
    tokenizer = tiny_tokenizer(FSQ([8, 8, 8]), image_size=64, encoder_depth=2)
    patch = tokenizer.patch_size
    image = torch.full((1, 3, 64, 64), -0.5)
    # Not aligned with the patches; two blocks see two patches further, which stays clear of the borders.
    image[..., 27:36, 28:35] = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = image.roll((dy * patch, dx * patch), dims=(2, 3))
    grid, moved_grid = (tokenizer.encode(x).ids.unflatten(1, (8, 8)) for x in (image, moved))
    assert not torch.equal(grid, moved_grid)
    assert torch.equal(grid.roll((dy, dx), dims=(1, 2)), moved_grid)


def test_a_plain_image_gets_one_id_everywhere() -> None:
    ids = tiny_tokenizer().encode(torch.full((1, 3, 32, 32), 0.3)).ids
    assert len(ids.unique()) == 1


def test_ids_are_in_raster_order() -> None:
    """An image that differs in one patch alone differs, without spatial blocks, in that patch's id alone."""
    tokenizer = tiny_tokenizer(encoder_depth=0)
    image = torch.zeros(1, 3, 32, 32)
    other = image.clone()
    other[..., 8:16, 24:32] = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 8
    differ = tokenizer.encode(image).ids != tokenizer.encode(other).ids
    assert differ.nonzero().tolist() == [[0, 1 * 4 + 3]]


def test_the_ids_of_a_cell_lie_side_by_side() -> None:
    with seeded(3):
        quantizer = ResidualVQ(num_levels=3, level_size=8, dim=4)
    tokenizer = tiny_tokenizer(quantizer, encoder_depth=0).eval()
    image = torch.zeros(1, 3, 32, 32)
    other = image.clone()
    other[..., 8:16, 24:32] = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 8
    tokens = tokenizer.encode(image)
    assert tokens.grid == (4, 12)
    assert torch.equal(tokens.ids // 8, torch.arange(3).repeat(1, 16))
    differ = (tokens.ids != tokenizer.encode(other).ids).nonzero()[:, 1]
    assert len(differ) and set(differ.tolist()) <= {21, 22, 23}, "cell (1, 3) of four a row, three tokens each"


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_size \(7\) must divide image_size \(32\) over 1"):
        tiny_tokenizer(patch_size=7)
    with pytest.raises(ValueError, match=r"image_size \(0\) must be at least 1"):
        tiny_tokenizer(image_size=0)
