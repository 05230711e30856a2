"""Parts that can not work together are refused when a model is built, naming both and what to change."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from blip3o.bridge import Bridge, IdleBridge, MLPBridge, TransformerBridge
from blip3o.checkpoints import instantiate
from blip3o.diffusion import TokenDecoderHead
from blip3o.model import Blip3oNext
from blip3o.tokenizers import FSQ, ResidualVQ
from tests.tiny import PLAIN, tiny_ar, tiny_ar_config, tiny_dit, tiny_head, tiny_tokenizer
from tests.tiny_bridges import PERCEIVER, generated


def built(bridge: Any, *, cond_grid: int | None = None, **arguments: Any) -> Blip3oNext:
    ar = arguments.pop("ar", None) or tiny_ar()
    return Blip3oNext(tiny_tokenizer(), ar, bridge, tiny_head(tiny_dit(cond_grid=cond_grid)), PLAIN, **arguments)


@pytest.mark.parametrize(
    ("bridge", "told"),
    [
        (
            {"reads": "prompt"},
            r"bridge \(MLPBridge, reads 'prompt'\) and diffusion \(FlowHead\) .* that varies, but cond_grid",
        ),
        (
            {"reads": "queries", "num_queries": 15},
            r"the condition has 15 positions, but cond_grid \(4\) needs 16, or one more",
        ),
        ({"ar_layers": [1, 3]}, r"asks for ar_layers \[3\], but the AR model has 2 layers; choose from 0..2"),
        ({"ar_layers": [-4]}, r"asks for ar_layers \[-4\], but the AR model has 2"),
        ({"reads": "queries", "num_queries": 94}, r"num_queries \(94\), .* context \(96\)"),
    ],
)
def test_parts_that_can_not_work_together_are_refused(bridge: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        built(partial(MLPBridge, **bridge), cond_grid=4)


@pytest.mark.parametrize(
    "bridge",
    [
        MLPBridge,
        partial(MLPBridge, reads="token_embeds"),
        partial(MLPBridge, reads="queries", num_queries=16),
        partial(PERCEIVER, num_latents=16, reads="prompt"),
    ],
)
def test_a_grid_is_kept_where_there_are_positions_enough(bridge: Any) -> None:
    model = built(bridge, cond_grid=4)
    assert generated(model).latents.isfinite().all()


def test_token_features_of_another_width_than_they_have_are_refused() -> None:
    class Stubborn(MLPBridge):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__(7, out_features, reads="token_embeds")

    with pytest.raises(ValueError, match="maps 7 to 24 features, but the image tokenizer gives 3"):
        built(Stubborn)


def test_a_bridge_that_has_the_widths_is_used_as_it_is_and_kept_in_the_config() -> None:
    bridge = MLPBridge(32, 24, depth=1)
    model = built(bridge)
    assert model.bridge is bridge
    again = instantiate(model.config())
    assert (again.bridge.in_features, again.bridge.config()) == (32, bridge.config())
    with pytest.raises(ValueError, match=r"maps 32 to 25 features, but the AR model gives 32 and the .* takes 24"):
        built(MLPBridge(32, 25))
    with pytest.raises(ValueError, match=r"reference_latents \(MLPBridge\) maps 32 to 24 features, not 48 to 24"):
        built(bridge, reference_latents=bridge)


def test_a_bridge_over_token_features_need_not_fit_the_ar_models_width() -> None:
    nine = tiny_tokenizer(FSQ([2] * 9))
    reading = partial(TransformerBridge, num_heads=3, depth=1, reads="token_embeds")
    model = Blip3oNext(nine, tiny_ar(), reading, tiny_head(), PLAIN)
    assert model.bridge.in_features == 9
    with pytest.raises(ValueError, match=r"AR model's hidden_size \(32\): num_heads \(3\) must divide width \(32\)"):
        Blip3oNext(nine, tiny_ar(), partial(TransformerBridge, num_heads=3), tiny_head(), PLAIN)
    with pytest.raises(ValueError, match=r"tokenizer's feature_dim \(9\), .*: num_heads \(8\) must divide width \(9\)"):
        Blip3oNext(nine, tiny_ar(), partial(TransformerBridge, reads="token_embeds"), tiny_head(), PLAIN)
    with pytest.raises(ValueError, match=r"hidden_size \(32\): num_heads \(5\) .* nor with .* feature_dim \(9\)"):
        Blip3oNext(nine, tiny_ar(), partial(TransformerBridge, num_heads=5), tiny_head(), PLAIN)


def test_a_bridge_without_positions_is_no_main_bridge() -> None:
    with pytest.raises(ValueError, match=r"bridge \(IdleBridge\) gives no condition position, .* as reference_latents"):
        built(IdleBridge)
    assert built(MLPBridge, reference_latents=IdleBridge).reference_latents is not None


@pytest.mark.parametrize("reads", ["image_tokens", "token_embeds"])
def test_tokens_that_share_cells_are_no_grid_however_many_they_are(reads: Any) -> None:
    """Four tokens a cell on 4 x 4 cells are 64, as many as an 8 x 8 grid has."""
    residual = ResidualVQ(num_levels=4, level_size=4, dim=6)
    bridge = partial(MLPBridge, reads=reads)
    ar = tiny_ar(max_position_embeddings=128)
    with pytest.raises(ValueError, match=r"do not fit: .* 4 x 16 image tokens, not the 8 x 8 of cond_grid \(8\)"):
        Blip3oNext(tiny_tokenizer(residual), ar, bridge, tiny_head(tiny_dit(cond_grid=8)), PLAIN)
    resampled = partial(PERCEIVER, num_latents=64, reads=reads)
    Blip3oNext(tiny_tokenizer(residual), ar, resampled, tiny_head(tiny_dit(cond_grid=8)), PLAIN)


def test_an_image_too_large_for_the_context_is_no_matter_where_it_is_not_written() -> None:
    small = tiny_ar(max_position_embeddings=14)
    with pytest.raises(ValueError, match="writes 16 tokens an image"):
        built(MLPBridge, ar=tiny_ar(max_position_embeddings=14))
    model = built(partial(MLPBridge, reads="prompt"), ar=small)
    assert generated(model).latents.shape == (3, 48, 8, 8)


def test_bridges_for_references_take_no_queries_and_no_layers() -> None:
    for wrong in ({"reads": "queries", "num_queries": 2}, {"ar_layers": [1]}):
        with pytest.raises(ValueError, match=r"reference_latents \(MLPBridge\) is given reference images"):
            built(MLPBridge, reference_latents=partial(MLPBridge, **wrong))


def test_a_bridge_is_chosen_in_yaml() -> None:
    from jsonargparse import ArgumentParser

    config = {
        "class_path": "blip3o.model.Blip3oNext",
        "init_args": {
            "tokenizer": tiny_tokenizer().config(),
            "ar": {
                "class_path": "blip3o.ar.causal_lm.CausalLM",
                "init_args": {"config": tiny_ar_config(), "text_tokenizer": ["a", "circle"]},
            },
            "bridge": {
                "class_path": "blip3o.bridge.TransformerBridge",
                "init_args": {"reads": "queries", "num_queries": 5, "ar_layers": [1, -1], "depth": 1, "num_heads": 2},
            },
            "diffusion": tiny_head().config(),
        },
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Blip3oNext, "model")
    model = parser.instantiate_classes(parser.parse_object({"model": config})).model
    assert isinstance(model.bridge, TransformerBridge) and isinstance(model.bridge, Bridge)
    assert (model.bridge.reads, model.bridge.num_queries, model.bridge.ar_layers) == ("queries", 5, (1, -1))
    assert model.bridge.in_features == 32
    assert instantiate(model.config()).bridge.config() == model.bridge.config()


def test_a_head_that_shows_tokens_is_refused_where_none_are_written() -> None:
    with pytest.raises(
        ValueError, match=r"diffusion \(TokenDecoderHead\) shows .* bridge \(MLPBridge, reads 'prompt'\)"
    ):
        Blip3oNext(
            tiny_tokenizer(), tiny_ar(), partial(MLPBridge, reads="prompt"), TokenDecoderHead(image_size=32), PLAIN
        )
