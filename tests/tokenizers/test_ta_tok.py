"""TATok: the contract, the released code's numbers, and its pool scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blip3o.tokenizers import TATok
from tests.fixtures import described, expected, needs_fixtures, weights
from tests.tiny import perturbed, seeded
from tests.tokenizers.contract import TrainableTokenizerContract

VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
PREFIX = "model.vision_tower.vision_tower."


def tiny_ta_tok(seed: int = 0, **arguments: object) -> TATok:
    """16 tokens an image, 32 codes; a decoder of 12 heads as the published one has."""
    with seeded(seed):
        tokenizer = TATok(VISION, **{"codebook_size": 32, "bottleneck_dim": 6, "decoder_depth": 1, **arguments})  # type: ignore[arg-type]
    return perturbed(tokenizer, seed, std=0.2).eval()


class TestTATok(TrainableTokenizerContract):
    def tokenizer(self) -> TATok:
        tokenizer = tiny_ta_tok()
        tokenizer.encoder.requires_grad_(False)
        return tokenizer


def test_a_tower_that_trains_is_no_target() -> None:
    tokenizer = tiny_ta_tok()
    images = torch.zeros(1, 3, 28, 28)
    with pytest.raises(ValueError, match="the vision tower trains"):
        tokenizer.reads(images)
    tokenizer.encoder.requires_grad_(False)
    hidden = tokenizer.encoder(images, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(tokenizer.reads(images), hidden)


def test_pool_scales_pool_the_tower_and_decode_again() -> None:
    tokenizer = tiny_ta_tok()
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert [tokenizer.num_tokens(scale) for scale in (1, 2, 3)] == [16, 4, 1]
    for scale, side in ((1, 4), (2, 2), (3, 1)):
        tokens = tokenizer.encode(images, scale)
        assert tokens.grid == (side, side)
        assert tokenizer.decode(tokens.ids).shape == (2, side**2, 24)
    with pytest.raises(ValueError, match="ids has shape"):
        tokenizer.decode(torch.zeros(1, 5, dtype=torch.long))


def test_training_draws_codes_and_evaluation_takes_the_nearest() -> None:
    tokenizer = tiny_ta_tok(temperature=0.5)
    vectors = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    nearest = tokenizer.quantizer.quantize(vectors)[1]
    assert torch.equal(nearest, tokenizer.quantizer.quantize(vectors)[1])
    tokenizer.train()
    with seeded(1):
        drawn = torch.stack([tokenizer.quantizer.quantize(vectors)[1] for _ in range(200)])
    cosines = torch.nn.functional.normalize(vectors, dim=-1) @ tokenizer.quantizer.projected().T
    expected_shares = (cosines / 0.5).softmax(-1)
    shares = torch.nn.functional.one_hot(drawn, 32).float().mean(0)
    assert (shares - expected_shares).abs().mean() < 0.02
    assert not torch.equal(drawn[0], nearest)


def test_layers_that_the_tower_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"select_layer \(-5\) must lie in -4..-1"):
        tiny_ta_tok(select_layer=-5)
    with pytest.raises(ValueError, match=r"patch_size \(7\) exceeds its image_size \(5\)"):
        TATok({**VISION, "image_size": 5})


def released(name: str) -> TATok:
    """The tokenizer of a fixture's checkpoint."""
    arguments = described(name, "meta.json")["tatok_args"]
    bottleneck = arguments["bottleneck"]["args"]
    tokenizer = TATok(
        described(name, "teacher/config.json")["vision_config"],
        codebook_size=bottleneck["regularizer"]["args"]["codebook_size"],
        bottleneck_dim=bottleneck["bottleneck_dim"],
        select_layer=arguments["select_layer_id"],
        decoder_depth=arguments["decoder_depth"],
    )
    tensors = weights(name, PREFIX)
    renamed = {
        "encode_task_layer.": "encode_task.",
        "decode_task_layer.": "decode_task.",
        "bottleneck.in_linear.": "bottleneck_in.",
        "bottleneck.out_linear.": "bottleneck_out.",
        "bottleneck.regularizer.embedding.": "quantizer.codebook.",
        "bottleneck.regularizer.embedding_proj.": "quantizer.codebook_proj.",
        "decoder.vision_model.": "decoder.",
        "scale_layer.": "input_",
    }
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        old = next((start for start in renamed if key.startswith(start)), "")
        state[renamed.get(old, "") + key.removeprefix(old)] = tensor
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


@needs_fixtures
@pytest.mark.parametrize("name", ["t2i", "edit"])
@torch.no_grad()
def test_parity_of_tokens_features_codebook_and_decoded_features(name: str) -> None:
    tokenizer, numbers = released(name), expected(name)
    pixels = numbers["pixel_values"]
    tokens = tokenizer.encode(pixels)
    assert torch.equal(tokens.ids, numbers["tok.tokens"])
    assert torch.equal(tokenizer.encode(pixels, scale=2).ids, numbers["tok.tokens_pool2"])
    torch.testing.assert_close(tokenizer.task_features(pixels), numbers["tok.features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokenizer.quantizer.projected(), numbers["tok.codebook"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(tokens.ids), numbers["tok.decoded"], rtol=0, atol=1e-5)


def test_it_embeds_ids_without_weights() -> None:
    with torch.device("meta"):
        tokenizer = TATok(VISION, codebook_size=32, bottleneck_dim=6)
        assert tokenizer.embed(torch.arange(32)[:, None]).shape == (32, 1, 6)


NAFLEX = {
    **{"model_type": "siglip2_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_patches": 16, "patch_size": 7},
}


class TestTATokOverATowerOfAnySize(TrainableTokenizerContract):
    def tokenizer(self) -> TATok:
        with seeded(0):
            tokenizer = TATok(NAFLEX, codebook_size=32, bottleneck_dim=6, decoder_depth=1)
        tokenizer.encoder.requires_grad_(False)
        return perturbed(tokenizer, std=0.2).eval()


@torch.no_grad()
def test_a_tower_of_any_size_reads_patches_as_transformers_cuts_them() -> None:
    from transformers import Siglip2ImageProcessor

    tokenizer = TestTATokOverATowerOfAnySize().tokenizer()
    pixels = torch.randint(256, (1, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    processor = Siglip2ImageProcessor(patch_size=7, max_num_patches=16)
    inputs = processor(images=list(pixels), return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[4, 4]]
    hidden = tokenizer.encoder(**inputs, output_hidden_states=True).hidden_states[-2]
    images = pixels.float() / 127.5 - 1
    torch.testing.assert_close(tokenizer.task_features(images), tokenizer.encode_task(hidden), rtol=1e-4, atol=1e-5)


def test_towers_that_are_none_or_have_no_square_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type \('clip_vision_model'\) must be one of siglip"):
        TATok({"model_type": "clip_vision_model"})
    with pytest.raises(ValueError, match=r"num_patches \(15\) must be a square number"):
        TATok(NAFLEX | {"num_patches": 15})
