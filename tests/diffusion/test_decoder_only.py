"""The head without diffusion: it shows the tokenizer's decoding, learns nothing, and refuses what it can not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.checkpoints import instantiate
from blip3o.data.shapes import ShapesDataModule
from blip3o.diffusion import DiffusionHead, TokenDecoderHead
from blip3o.model import Blip3oNext
from blip3o.training.base import Optimization
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from tests.diffusion.contract import HeadContract
from tests.tiny import PLAIN_EDITS, generators, perturbed, seeded, tiny_ar, tiny_images, tiny_tokenizer
from tests.tokenizers.test_ta_tok import tiny_ta_tok

CAPTIONS = ["a red circle", "two blue squares"]


class TestTokenDecoderHead(HeadContract):
    def head(self) -> TokenDecoderHead:
        return TokenDecoderHead(image_size=32)

    def sample(self, head: DiffusionHead, **arguments: Any) -> Tensor:
        return super().sample(head, **{"pictures": tiny_images(2), **arguments})


def model(image_size: int = 32) -> Blip3oNext:
    with seeded(0):
        built = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, TokenDecoderHead(image_size=image_size), PLAIN_EDITS)
    perturbed(built.ar)
    return built.eval()


def test_the_pictures_are_shown_as_they_are_whatever_the_condition() -> None:
    case, head = TestTokenDecoderHead(), TestTokenDecoderHead().head()
    pictures = 1.1 * tiny_images(2)
    shown = head.decode(case.sample(head, pictures=pictures))
    assert torch.equal(shown, pictures.clamp(-1, 1))
    other = case.sample(head, pictures=pictures, conditioning=case.condition(head, 12), num_inference_steps=9)
    assert torch.equal(head.decode(other), shown)


def test_pictures_of_another_size_are_resampled() -> None:
    head = TokenDecoderHead(image_size=16)
    flat = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(head.encode(flat), torch.full((1, 3, 16, 16), 0.25))
    assert head.encode(tiny_images(2)).shape == (2, 3, 16, 16)
    assert TokenDecoderHead(image_size=64).encode(flat.bfloat16()).dtype == torch.bfloat16


def test_what_is_missing_or_can_not_be_used_is_refused() -> None:
    case, head = TestTokenDecoderHead(), TestTokenDecoderHead().head()
    with pytest.raises(ValueError, match="pictures is missing"):
        case.sample(head, pictures=None)
    with pytest.raises(ValueError, match="latents were given"):
        case.sample(head, latents=torch.zeros(2, 3, 32, 32))
    for name in ("image_size", "cond_dim"):
        with pytest.raises(ValueError, match=rf"{name} \(0\)"):
            TokenDecoderHead(**{"image_size": 32, name: 0})


@pytest.mark.parametrize("image_size", [32, 16])
def test_a_model_shows_what_its_tokenizer_decodes(image_size: int) -> None:
    built = model(image_size)
    rendered = built.generate(CAPTIONS, generator=generators(2))
    pictures = built.tokenizer.decode(rendered.tokens.ids)
    assert torch.equal(built.diffusion.decode(rendered.latents), built.diffusion.encode(pictures).clamp(-1, 1))
    assert rendered.latents.shape == (2, 3, image_size, image_size)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


def test_training_learns_the_tokens_and_leaves_the_bridge_alone() -> None:
    built = model().train()
    losses = built.losses(tiny_images(2), CAPTIONS, rendered_rows=torch.tensor([1]), generator=generators(1))
    assert torch.equal(losses.flow, torch.zeros(1))
    (losses.cross_entropy + losses.flow.mean()).backward()
    trained = {name.split(".")[0] for name, p in built.named_parameters() if p.requires_grad and p.grad is not None}
    idle = {name.split(".")[0] for name, p in built.named_parameters() if p.requires_grad and p.grad is None}
    assert trained == {"ar"} and idle <= {"tokenizer"}, "no trainable parameter is left without a gradient"


def test_joint_training_runs_with_it_and_moves_the_ar_model_alone() -> None:
    module = JointModule(model(), Optimization(lr=1e-2, warmup_steps=1), supervise="image")
    before = {name: p.clone() for name, p in module.model.named_parameters()}
    data = ShapesDataModule(world="shapes-mini", batch_size=4, num_val=1, num_prompts=1)
    steps = fit_steps(module, data, num_steps=3)
    assert all(step["flow"] == 0 for step in steps)
    assert all(step["loss"] == step["cross_entropy"] > 0 for step in steps)
    moved = {name.split(".")[0] for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"ar"}


def test_a_model_with_it_is_saved_and_its_pipeline_generates_and_edits(tmp_path: Path) -> None:
    built = model()
    assert instantiate(built.config()).config() == built.config()
    pipe = Blip3oPipeline(built)
    first = pipe(CAPTIONS, generator=generators(2), output_type="pt").images
    pipe.save_pretrained(tmp_path)
    again = Blip3oPipeline.from_pretrained(tmp_path)
    assert torch.equal(again(CAPTIONS, generator=generators(2), output_type="pt").images, first)
    picture = pipe(CAPTIONS[0], generator=generators(1)).images[0]
    assert picture.size == (32, 32)
    edit = pipe(CAPTIONS[1], image=picture, generator=generators(1)).images[0]
    assert edit.tobytes() != picture.tobytes()


def test_a_tokenizer_that_decodes_to_features_is_refused_and_so_are_references_in_the_condition() -> None:
    head = TokenDecoderHead(image_size=32)
    message = r"diffusion \(TokenDecoderHead\) shows .* tokenizer \(TATok\) decodes to 'features'; use a tokenizer"
    with pytest.raises(ValueError, match=message):
        Blip3oNext(tiny_ta_tok(), tiny_ar(), MLPBridge, head, PLAIN_EDITS)
    with pytest.raises(ValueError, match=r"reference_latents .* diffusion \(TokenDecoderHead\) does not read"):
        Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, head, PLAIN_EDITS, reference_latents=MLPBridge)
