"""Whole models over tokenizers of other kinds: they train, write tokens that decode, edit, save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip3o.ar.base import Sampling
from blip3o.bridge import MLPBridge
from blip3o.checkpoints.folder import load_model, save_model
from blip3o.demo.stages import token_grid
from blip3o.diffusion import FlowHead, PixelCodec, Sana
from blip3o.model import Blip3oNext
from blip3o.prompts import PromptTemplate
from blip3o.tokenizers import DiffusersVQ, ImageTokenizer, ResidualVQ, TimmTokenizer
from tests.tiny import generators, perturbed, seeded, tiny_ar, tiny_images, tiny_sana
from tests.tokenizers.test_vq_model import CONFIG

TEMPLATE = PromptTemplate(
    "{caption}", edit="{instruction}", before_references="", after_references="", system=None, chat=False
)


def build(name: str) -> ImageTokenizer:
    if name == "diffusers":
        return DiffusersVQ({**CONFIG, "block_out_channels": [8, 8, 8, 8]} | stages(4))
    return TimmTokenizer(
        ResidualVQ(num_levels=2, level_size=16, dim=4),
        image_size=32,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
        width=16,
        decoder_depth=1,
    )


def stages(count: int) -> dict[str, list[str]]:
    return {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}


@pytest.mark.parametrize("name", ["timm, residual", "diffusers"])
def test_a_model_over_it_trains_writes_edits_saves_and_loads(name: str, tmp_path: Path) -> None:
    with seeded(0):
        denoiser = Sana(tiny_sana(in_channels=12, out_channels=12).init_args["config"])
        head = FlowHead(denoiser, PixelCodec(patch_size=2), image_size=32)
        model = Blip3oNext(build(name), tiny_ar(), MLPBridge, head, TEMPLATE, reference_features=MLPBridge)
    perturbed(model.ar)
    images, captions = tiny_images(2), ["a red circle", "a circle and a square"]
    references = tiny_images(2, seed=1)[:, None]
    model.train()
    losses = model.losses(images, captions, references=references, generator=generators(2))
    (losses.cross_entropy + losses.flow.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    written = model.write(
        captions, sampling=Sampling(temperature=5.0, top_k=0), generator=generators(2), token_references=references
    )
    tokenizer = model.tokenizer
    assert written.ids.shape == (2, tokenizer.num_tokens())
    assert tokenizer.decode(written.ids).shape == images.shape
    grid = token_grid(model, written.ids[0])
    assert (len(grid.ids), len(grid.ids[0])) == tokenizer.token_grid()
    save_model(model, tmp_path / "model")
    again, _ = load_model(tmp_path / "model")
    assert torch.equal(again.tokenizer.encode(images).ids, tokenizer.encode(images).ids)
