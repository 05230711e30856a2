"""Losses of image token ids and latents in place of pictures: the same numbers, and what is missing is told."""

from __future__ import annotations

import pytest
import torch

from blip3o.bridge import MLPBridge
from blip3o.diffusion import Codec, PixelCodec, TokenDecoderHead
from blip3o.fitting import check_takes_latents
from blip3o.model import Blip3oNext
from blip3o.structures import Conditioning
from tests.tiny import (
    COND_DIM,
    PLAIN,
    generators,
    tiny_ar,
    tiny_dcae,
    tiny_dit,
    tiny_head,
    tiny_images,
    tiny_model,
    tiny_sana,
    tiny_tokenizer,
)

CONDITION = Conditioning(torch.randn(3, 5, COND_DIM, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("codec", [PixelCodec(patch_size=4), tiny_dcae()], ids=lambda codec: type(codec).__name__)
def test_a_head_has_the_same_loss_on_images_and_on_their_latents(codec: Codec) -> None:
    denoiser = tiny_dit() if codec.latent_channels == 48 else tiny_sana()
    head, images = tiny_head(denoiser, codec).eval(), tiny_images(3)
    with torch.no_grad():
        latents = head.encode(images)
    expected = head.loss(images, CONDITION, generator=generators(3))
    assert torch.equal(head.loss(None, CONDITION, generator=generators(3), latents=latents), expected)
    assert not torch.equal(head.loss(None, CONDITION, generator=generators(3), latents=latents + 1), expected)


def test_a_model_has_the_same_losses_on_pictures_and_on_what_was_encoded() -> None:
    model, images, captions = tiny_model(), tiny_images(2), ["a red circle", "two squares"]
    with torch.no_grad():
        codes = {"image_ids": model.tokenizer.encode(images).ids, "latents": model.diffusion.encode(images)}
    live = model.losses(images, captions, generator=generators(2))
    known = model.losses(None, captions, generator=generators(2), **codes)
    for name in ("cross_entropy", "num_tokens", "flow"):
        assert torch.equal(getattr(live, name), getattr(known, name))
    other = model.losses(None, captions, generator=generators(2), **codes | {"image_ids": codes["image_ids"].flip(1)})
    assert not torch.equal(other.cross_entropy, live.cross_entropy)


def test_what_is_missing_or_does_not_fit_is_told() -> None:
    model, images = tiny_model(), tiny_images(1)
    latents, ids = model.diffusion.encode(images), model.tokenizer.encode(images).ids
    for arguments, told in (
        ({"image_ids": ids}, "images and latents are both None"),
        ({"latents": latents}, "images and image_ids are both None"),
        ({"latents": latents, "image_ids": ids[:, 1:]}, r"image_ids has shape \(1, 15\); ConvTokenizer writes"),
        ({"latents": latents[..., 1:], "image_ids": ids}, r"latents has shape .*; this head renders"),
    ):
        with pytest.raises(ValueError, match=told):
            model.losses(None, ["a red circle"], **arguments)
    for both in ({"images": images, "latents": latents}, {"images": None}):
        with pytest.raises(ValueError, match="exactly one of them"):
            tiny_head().loss(conditioning=CONDITION[:1], **both)


def test_a_head_that_needs_pixels_says_so() -> None:
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, TokenDecoderHead(image_size=32), PLAIN)
    latents, ids = torch.zeros(3, 48, 8, 8), torch.zeros(3, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"diffusion \(TokenDecoderHead\) needs pixels: its loss takes no latents"):
        model.losses(None, ["a"] * 3, image_ids=ids, latents=latents)
    with pytest.raises(ValueError, match="has no codec and needs pixels"):
        model.diffusion.loss(None, CONDITION, latents=latents)


def test_a_flow_head_whose_own_loss_knows_no_latents_is_told_apart() -> None:
    head = tiny_head()
    check_takes_latents(head)
    head.loss = lambda images, conditioning, references=None, generator=None: images  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="its loss takes no latents"):
        check_takes_latents(head)
