"""VisionLanguageLM: the contract for text, and reference images read by its own tower."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from blip3o import Blip3oPipeline
from blip3o.ar import ARBackbone, CausalLM, VisionLanguageLM, word_tokenizer
from blip3o.bridge import MLPBridge
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.pixels import to_uint8
from blip3o.prompts import PromptTemplate
from blip3o.structures import IGNORE_INDEX
from tests.ar.backbones import CAUSAL, VISION, VISION_WORDS, vision
from tests.ar.contract import CAPTIONS, GREEDY, NUM_CODES, ARBackboneContract
from tests.tiny import WORDS, generators, perturbed, tiny_ar, tiny_head, tiny_images, tiny_tokenizer

TEMPLATE = PromptTemplate("{caption}", edit="{instruction}", system=None, chat=False)


class TestQwen3VL(ARBackboneContract):
    def backbone(self) -> VisionLanguageLM:
        return vision("qwen3_vl")

    def untrained(self, backbone: ARBackbone) -> set[str]:
        """Text does not pass the tower."""
        return {name for name, _ in backbone.named_parameters() if ".visual." in name}


@cache
def ready(model_type: str) -> VisionLanguageLM:
    backbone = vision(model_type)
    backbone.extend_vocabulary(NUM_CODES)
    return perturbed(backbone, std=0.2).eval()


def pictures(rows: int = 2, count: int = 2, seed: int = 0) -> Tensor:
    """(rows, count, 3, 16, 24) in [-1, 1]: two rows of three positions each."""
    return torch.rand(rows, count, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def prompt(backbone: VisionLanguageLM, count: int = 2) -> tuple[Tensor, Tensor]:
    """Two rows, the second one shorter, with pictures between words."""
    assert backbone.vocabulary is not None
    seen = backbone.image_ids(count, 16, 24)
    end = [8, backbone.vocabulary.image_start, backbone.vocabulary.scale()]
    ids = torch.tensor([[5, 6, 7, *seen, *end], [0, 0, 9, *seen, *end]])
    return ids, torch.arange(ids.shape[1]) >= torch.tensor([[0], [2]])


@pytest.mark.parametrize("model_type", sorted(VISION))
@torch.no_grad()
def test_hidden_states_are_those_of_the_whole_model_of_transformers(model_type: str) -> None:
    """Features, their places, positions in rows and columns: all as the model itself does it with its processor."""
    backbone, images = ready(model_type), pictures()
    ids, mask = prompt(backbone)
    config = backbone.lm.config.vision_config
    processor = Qwen2VLImageProcessor(
        patch_size=config.patch_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 1, "longest_edge": 10**6},
    )
    arrays = [Image.fromarray(array) for array in to_uint8(images.flatten(0, 1))]
    batch = processor(arrays, return_tensors="pt")
    exact = (torch.stack([torch.tensor(list(one.getdata())) for one in arrays]).float() / 127.5 - 1).reshape(
        4, 16, 24, 3
    )
    images = exact.movedim(-1, 1).unflatten(0, (2, 2))
    own = backbone.lm.base_model(
        input_ids=ids,
        attention_mask=mask.long(),
        **batch,
        mm_token_type_ids=(ids == backbone.image_pad).int(),
    ).last_hidden_state
    ours = backbone(ids, mask, images=images).hidden
    torch.testing.assert_close(ours[mask], own[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", sorted(VISION))
@torch.no_grad()
def test_pictures_matter_in_their_order_and_rows_stay_apart(model_type: str) -> None:
    backbone, images = ready(model_type), pictures()
    ids, mask = prompt(backbone)
    hidden = backbone(ids, mask, images=images).hidden
    for other in (images.flip(-1), images.flip(1), torch.cat([images[:, :1], pictures(seed=1)[:, 1:]], dim=1)):
        changed = (backbone(ids, mask, images=other).hidden - hidden).abs()
        assert (changed[:, -1].amax(-1) > 1e-3).all()
        assert (changed[:, :3] == 0).all(), "words before the pictures do not see them"
    alone = backbone(ids[1:, 2:], mask[1:, 2:], images=images[1:]).hidden
    torch.testing.assert_close(hidden[1:, 2:], alone, rtol=1e-4, atol=1e-4)
    first = prompt(backbone, 1)
    assert backbone(*first, images=images[:, :1]).hidden.shape[1] == hidden.shape[1] - 8


@pytest.mark.parametrize("model_type", sorted(VISION))
@torch.no_grad()
def test_decoding_after_pictures_equals_a_whole_pass(model_type: str) -> None:
    """Positions go on after the pictures', which take less room than their pads."""
    backbone, images = ready(model_type), pictures()
    assert backbone.vocabulary is not None
    ids, mask = prompt(backbone)
    tokens = backbone.generate(ids, mask, 5, GREEDY, images=images)
    sequence = torch.cat([ids, tokens.ids + backbone.vocabulary.first_code], dim=1)
    whole = backbone(sequence, F.pad(mask, (0, 5), value=True), images=images).hidden[:, -6:]
    torch.testing.assert_close(tokens.hidden, whole, rtol=1e-4, atol=1e-4)
    guided = backbone.generate(ids, mask, 5, GREEDY, None, (ids, mask), 2.0, images=images)
    assert torch.equal(guided.ids, tokens.ids), "guidance against the prompt itself changes nothing"


@torch.no_grad()
def test_without_pictures_it_is_the_plain_language_model() -> None:
    """Qwen3-VL's text part is Qwen3: the same weights give the same tokens and states."""
    backbone = ready("qwen3_vl")
    sizes = {**CAUSAL["qwen3"], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    plain = CausalLM({"model_type": "qwen3", **sizes}, list(VISION_WORDS))
    plain.extend_vocabulary(NUM_CODES)
    plain.lm.base_model.load_state_dict(backbone.lm.get_decoder().state_dict())
    plain.lm.get_output_embeddings().load_state_dict(backbone.lm.get_output_embeddings().state_dict())
    contract = TestQwen3VL()
    one, two = contract.generate(backbone), contract.generate(plain.eval())
    assert torch.equal(one.ids, two.ids)
    torch.testing.assert_close(one.hidden, two.hidden, rtol=1e-5, atol=1e-5)


def test_pictures_and_pads_must_fit_each_other() -> None:
    backbone = ready("qwen3_vl")
    ids, mask = prompt(backbone)
    for wrong in (pictures(count=1), pictures(rows=1), pictures().repeat(1, 1, 1, 2, 1)):
        with pytest.raises(ValueError, match="put the ids of image_ids into each row"):
            backbone(ids, mask, images=wrong)


def test_a_backbone_without_a_tower_refuses_pictures() -> None:
    plain = tiny_ar()
    plain.extend_vocabulary(NUM_CODES)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="CausalLM has no vision tower"):
        plain(ids, images=pictures())
    with pytest.raises(ValueError, match="CausalLM has no vision tower"):
        plain.image_ids(1, 16, 16)


def test_what_can_not_read_pictures_is_refused() -> None:
    config = {"model_type": "qwen3_vl", **VISION["qwen3_vl"]}
    with pytest.raises(ValueError, match=r"text_tokenizer lacks <\|vision_start\|>"):
        VisionLanguageLM(config, list(WORDS))
    with pytest.raises(ValueError, match=r"config.image_token_id \(151655\) must lie in 0..23"):
        VisionLanguageLM({**config, "image_token_id": 151655}, list(VISION_WORDS))
    wrong = {**config, "vision_config": {**config["vision_config"], "num_layers": 3}}
    with pytest.raises(ValueError, match=r"config.vision_config holds keys .* num_layers"):
        VisionLanguageLM(wrong, list(VISION_WORDS))
    with pytest.raises(ValueError, match="qwen3"):
        VisionLanguageLM({"model_type": "qwen3", **CAUSAL["qwen3"]}, list(VISION_WORDS))


def test_small_and_large_pictures_are_resized_to_whole_patches() -> None:
    config = {"model_type": "qwen3_vl", **VISION["qwen3_vl"]}
    backbone = VisionLanguageLM(config, list(VISION_WORDS), min_pixels=16 * 16, max_pixels=32 * 32)
    assert [len(backbone.image_ids(1, side, side)) - 2 for side in (8, 16, 19, 21, 32, 64)] == [4, 4, 4, 9, 16, 16]


def test_from_a_transformers_folder_with_its_image_processor(tmp_path: Path) -> None:
    original = perturbed(vision("qwen3_vl"), std=0.2)
    original.lm.save_pretrained(tmp_path)
    word_tokenizer(VISION_WORDS).save_pretrained(tmp_path)
    Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 4096}, image_mean=[0.4] * 3).save_pretrained(
        tmp_path
    )
    loaded = VisionLanguageLM.from_pretrained(str(tmp_path))
    assert (loaded.min_pixels, loaded.max_pixels, loaded.image_mean) == (64, 4096, [0.4] * 3)
    for backbone in (original, loaded):
        backbone.extend_vocabulary(NUM_CODES)
        backbone.eval()
    ids, mask = prompt(original)
    one, two = (one(ids, mask, images=pictures()).hidden for one in (original, loaded))
    assert not torch.equal(one, two), "it normalises otherwise"
    loaded.__dict__.pop("image_processor")
    loaded.image_mean = loaded.image_std = [0.5] * 3
    assert torch.equal(one, loaded(ids, mask, images=pictures()).hidden)


@cache
def pipeline() -> Blip3oPipeline:
    model = Blip3oNext(tiny_tokenizer(), vision("qwen3_vl"), MLPBridge, tiny_head(), TEMPLATE)
    perturbed(model, std=0.2)
    return Blip3oPipeline(model, GenerationDefaults(num_inference_steps=1, top_k=0))


def test_a_whole_model_edits_by_what_its_tower_sees(tmp_path: Path) -> None:
    pipe = pipeline()
    images = [Image.fromarray(array) for array in to_uint8(tiny_images(3))]
    captions = list(CAPTIONS[:2])

    def edited(pipe: Blip3oPipeline, prompts: list[str], given: list[list[Image.Image]], first_seed: int = 0) -> Tensor:
        result = pipe(prompts, image=given, generator=generators(len(prompts), first_seed), output_type="latent")
        return result.hidden_states

    batch = edited(pipe, captions, [images[:2], images[1:]])
    for row, caption in enumerate(captions):
        alone = edited(pipe, [caption], [images[row : row + 2]], row)
        torch.testing.assert_close(batch[row], alone[0], rtol=1e-4, atol=1e-4)
    assert (edited(pipe, captions, [images[:2], images[:2]])[1] - batch[1]).abs().max() > 1e-3
    assert (edited(pipe, captions, [images[:1], images[:1]]) - batch).abs().max() > 1e-3
    again = Blip3oPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    assert torch.equal(edited(again, captions, [images[:2], images[1:]]), batch)


def test_the_prompt_holds_framed_pads_which_are_not_supervised() -> None:
    model = pipeline().model
    ar = model.ar
    assert isinstance(ar, VisionLanguageLM)
    seen = ar.image_ids(2, 32, 32)
    assert seen == [ar.vision_start, *[ar.image_pad] * 16, ar.vision_end] * 2
    sequences = model.sequences.training(list(CAPTIONS), torch.zeros(3, 4, dtype=torch.long), references=seen)
    assert (sequences.reference_mask.sum(1) == len(seen)).all()
    for row, mask in zip(sequences.input_ids, sequences.reference_mask, strict=True):
        assert row[mask].tolist() == seen
    assert (sequences.labels[sequences.reference_mask] == IGNORE_INDEX).all()
    others = sequences.attention_mask & ~sequences.reference_mask
    assert torch.equal(sequences.labels[others], sequences.input_ids[others])


@pytest.mark.parametrize("trainable", [True, False])
def test_training_on_references_reaches_the_tower_unless_it_is_frozen(trainable: bool) -> None:
    model = pipeline().model
    tower = model.ar.lm.base_model.visual
    tower.requires_grad_(trainable)
    model.zero_grad()
    images = tiny_images(2)
    losses = model.losses(
        images, list(CAPTIONS[:2]), references=images.flip(-1)[:, None].repeat(1, 2, 1, 1, 1), generator=generators(2)
    )
    losses.cross_entropy.backward()
    reached = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in tower.parameters()]
    assert (sum(reached) > 0.9 * len(reached)) if trainable else not any(reached)
    assert model.ar.lm.get_decoder().layers[0].mlp.up_proj.weight.grad.any()
    tower.requires_grad_(True)
    model.zero_grad()


def test_projected_features_have_no_place_beside_a_tower() -> None:
    from tests.tokenizers.test_ta_tok import tiny_ta_tok

    with pytest.raises(ValueError, match="reference_features can not be used with VisionLanguageLM"):
        Blip3oNext(tiny_ta_tok(), vision("qwen3_vl"), MLPBridge, tiny_head(), TEMPLATE, reference_features=MLPBridge)
