"""Every image tokenizer with every bridge and every head: what is meant to work trains a step and draws a picture.

What can not work is refused when the model is built, naming two parts and the remedy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.ar import Sampling
from blip3o.diffusion import DiffusionHead, FlowHead, TokenDecoderHead, VPrediction
from blip3o.model import Blip3oNext
from blip3o.tokenizers import EMAVQ, FSQ, LFQ, ImageTokenizer, ResidualVQ, SimVQ
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sd3 import sd3
from tests.tiny import (
    IMAGE_SIZE,
    PLAIN,
    generators,
    seeded,
    tiny_ar,
    tiny_dcae,
    tiny_dit,
    tiny_head,
    tiny_images,
    tiny_sana,
    tiny_tokenizer,
)
from tests.tiny_bridges import BRIDGES, WITHOUT_TOKENS
from tests.tokenizers.test_ta_tok import tiny_ta_tok
from tests.tokenizers.test_timm_tokenizer import tiny as tiny_timm
from tests.tokenizers.test_vq_model import tiny as tiny_vq

CAPTIONS = ["a red circle", "two blue squares"]
TOKENIZERS: dict[str, Callable[[], ImageTokenizer]] = {
    "FSQ": lambda: tiny_tokenizer(FSQ([4, 4, 4])),
    "SimVQ": lambda: tiny_tokenizer(SimVQ(codebook_size=16, dim=6)),
    "LFQ": lambda: tiny_tokenizer(LFQ(num_bits=5)),
    "BSQ": lambda: tiny_tokenizer(LFQ(num_bits=5, spherical=True)),
    "EMA-VQ": lambda: tiny_tokenizer(EMAVQ(codebook_size=16, dim=6)),
    "residual VQ": lambda: tiny_tokenizer(ResidualVQ(num_levels=2, level_size=8, dim=6)),
    "timm": lambda: tiny_timm(),
    "VQModel": lambda: tiny_vq(),
    "TA-Tok": lambda: tiny_ta_tok(),
}
HEADS: dict[str, Callable[[], DiffusionHead]] = {
    "DiT": lambda: tiny_head(tiny_dit()),
    "DiT on a grid": lambda: tiny_head(tiny_dit(cond_grid=4)),
    "DiT, v-prediction": lambda: FlowHead(tiny_dit(), tiny_head().codec, image_size=32, objective=VPrediction()),
    "SANA": lambda: tiny_head(tiny_sana(), tiny_dcae()),
    "PixArt": lambda: tiny_head(tiny_pixart(), tiny_dcae()),
    "Lumina 2": lambda: tiny_head(tiny_lumina2(axes_lens=[96, 8, 8]), tiny_dcae()),
    "SD3": lambda: tiny_head(sd3(), tiny_dcae()),
    "decoder only": lambda: TokenDecoderHead(image_size=IMAGE_SIZE),
}


def refused(tokenizer: ImageTokenizer, bridge: str, head: str) -> str | None:
    """What the message says of a combination that can not work; None where it works."""
    if head == "decoder only" and tokenizer.decodes_to != "pixels":
        return r"diffusion \(TokenDecoderHead\) .* tokenizer \(TATok\) decodes to 'features'; use"
    if head == "decoder only" and bridge in WITHOUT_TOKENS:
        return r"diffusion \(TokenDecoderHead\) .* bridge \(\w+, reads '(queries|prompt)'\) none are written; set"
    if head == "DiT on a grid":
        count = tokenizer.num_tokens()
        on_grid = {"token states", "token embeddings", "layer fusion", "transformer"}
        if bridge not in on_grid or count != 16:
            return r"bridge \(\w+, reads '\w+'\) and diffusion \(FlowHead\) do not fit: .*cond_grid \(4\).*;"
    return None


@cache
def built(kind: str, name: str) -> Any:
    with seeded():
        return (TOKENIZERS if kind == "tokenizer" else HEADS)[name]()


@cache
def backbone(codes: int) -> Any:
    ar = tiny_ar(max_position_embeddings=128)
    ar.extend_vocabulary(codes)
    return ar


def compose(tokenizer: str, bridge: str, head: str) -> Blip3oNext:
    read = built("tokenizer", tokenizer)
    with seeded():
        parts = copy.deepcopy((read, backbone(read.codebook_size), built("head", head)))
        return Blip3oNext(parts[0], parts[1], BRIDGES[bridge], parts[2], PLAIN)


@pytest.mark.parametrize(
    ("tokenizer", "bridge", "head"),
    [pytest.param(*names, id=" - ".join(names)) for names in product(TOKENIZERS, BRIDGES, HEADS)],
)
def test_matrix(tokenizer: str, bridge: str, head: str) -> None:
    told = refused(built("tokenizer", tokenizer), bridge, head)
    if told is not None:
        with pytest.raises(ValueError, match=told):
            compose(tokenizer, bridge, head)
        return
    model = compose(tokenizer, bridge, head)
    loss = one_step(model)
    assert loss.isfinite()
    out = model.eval().generate(
        CAPTIONS, num_inference_steps=2, sampling=Sampling(1.0, 0, 1.0), generator=generators(2), guidance_scale=2.0
    )
    wanted = 0 if bridge in WITHOUT_TOKENS else model.tokenizer.num_tokens()
    assert out.tokens.ids.shape == (2, wanted)
    images = model.diffusion.decode(out.latents)
    assert images.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.isfinite().all()
    assert not torch.equal(images[0], images[1])


def one_step(model: Blip3oNext) -> Tensor:
    """The joint loss before a step of SGD, which every part that trains took part in."""
    model.train()
    for frozen in (model.tokenizer, getattr(model.diffusion, "codec", model.tokenizer)):
        frozen.requires_grad_(False)
    images = tiny_images(2)
    side = model.tokenizer.image_size
    small = torch.nn.functional.interpolate(images, (side, side))
    losses = model.losses(images, CAPTIONS, token_images=small, supervise="image", generator=generators(2))
    loss = losses.cross_entropy / losses.num_tokens.clamp(min=1) + losses.flow.mean()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if name in before and not torch.equal(p, before[name])
    }
    assert moved == {name.split(".")[0] for name in before}
    return loss.detach()
