"""What reaches a bridge, in training and in generation: each kind of states against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blip3o.ar import Sampling
from blip3o.bridge import MLPBridge
from blip3o.model import Blip3oNext
from blip3o.prompts import PromptTemplate
from blip3o.reading import decoded_states
from blip3o.structures import ARStates
from tests.tiny import generators, perturbed, seeded, tiny_ar, tiny_head, tiny_images
from tests.tiny_bridges import (
    BRIDGES,
    CAPTIONS,
    GREEDY,
    PERCEIVER,
    WITHOUT_TOKENS,
    every_bridge,
    generated,
    read_of,
    shared,
)
from tests.tokenizers.test_ta_tok import tiny_ta_tok

EDITING = PromptTemplate(
    "{caption}", edit="{instruction}", before_references="", after_references="", system=None, chat=False
)


@every_bridge
def test_training_and_generation_give_the_bridge_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sequences hold the decoded tokens here; without tokens, prompts are read alike."""
    model = shared(name)
    tokens = model.write(CAPTIONS, sampling=GREEDY)
    encode = model.tokenizer.encode
    if model.bridge.needs_tokens:
        monkeypatch.setattr(model.tokenizer, "encode", lambda images: replace(encode(images), ids=tokens.ids))
    trained, written = read_of(model), decoded_states(model.bridge, model.tokenizer, tokens)
    torch.testing.assert_close(trained.hidden, written.hidden, rtol=1e-4, atol=1e-4)
    assert (trained.layers is None) == (written.layers is None) == (not model.bridge.ar_layers)
    if trained.layers is not None:
        torch.testing.assert_close(trained.layers, written.layers, rtol=1e-4, atol=1e-4)
    assert (trained.mask is None) == (written.mask is None) == (model.bridge.reads != "prompt")


@pytest.mark.parametrize("name", WITHOUT_TOKENS)
def test_without_tokens_one_pass_is_all_and_their_settings_do_nothing(name: str) -> None:
    model = shared(name)
    calls = []
    handle = model.ar.lm.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    plain = generated(model)
    assert len(calls) == 1
    handle.remove()
    other = generated(model, sampling=Sampling(temperature=3.0), token_guidance_scale=4.0)
    assert torch.equal(plain.latents, other.latents)
    assert plain.tokens.log_probs.shape == (3, 0)


@pytest.mark.parametrize("name", WITHOUT_TOKENS)
def test_captions_are_checked_where_no_token_is_learnt_too(name: str) -> None:
    with pytest.raises(ValueError, match=r"caption \('a pink circle'\) holds words .* \['pink'\]"):
        shared(name).losses(tiny_images(1), ["a pink circle"], generator=generators(1))
    with pytest.raises(ValueError, match=r"captions \(1\) and images \(2\) must have one length"):
        shared(name).losses(tiny_images(2), ["a circle"], generator=generators(2))


@pytest.mark.parametrize(
    "name", [name for name, bridge in BRIDGES.items() if "ar_layers" in getattr(bridge, "keywords", {})]
)
def test_the_layers_read_are_those_asked_for(name: str) -> None:
    model = shared(name)
    states = read_of(model)
    assert states.layers is not None
    assert states.layers.shape[:2] == (3, len(model.bridge.ar_layers))
    counted = states.mask if states.mask is not None else torch.ones(states.hidden.shape[:2], dtype=torch.bool)
    assert torch.equal(states.layers[:, -1][counted], states.hidden[counted]), "-1 and 2 are the last of two"
    for earlier in range(states.layers.shape[1] - 1):
        assert (states.layers[:, earlier] - states.hidden)[counted].abs().max() > 1e-2


def test_queries_see_the_whole_prompt_and_one_another_in_order() -> None:
    model = shared("queries, perceptron")
    states = read_of(model)
    assert states.mask is None
    for row, caption in enumerate(CAPTIONS):
        ids, _ = model.sequences.prompts([caption])
        embeds = torch.cat([model.ar.embed(ids), model.bridge.queries[None]], dim=1)  # type: ignore[index]
        hidden = model.ar(torch.zeros(embeds.shape[:2], dtype=torch.int64), inputs_embeds=embeds).hidden
        torch.testing.assert_close(states.hidden[row], hidden[0, -5:], rtol=1e-4, atol=1e-4)


def test_padding_of_prompts_counts_for_nothing() -> None:
    model = shared("prompt states")
    tokens = model.write(CAPTIONS)
    lengths = [2 + len(caption.split()) for caption in CAPTIONS]
    assert tokens.mask is not None and tokens.mask.sum(1).tolist() == lengths
    assert not tokens.hidden[~tokens.mask].any()
    condition, null = model.condition(tokens)
    assert torch.equal(condition.full_mask(), tokens.mask) and torch.equal(null.full_mask(), tokens.mask)


def test_token_features_are_read_and_hidden_states_are_not() -> None:
    model = shared("token embeddings")
    assert model.bridge.in_features == model.tokenizer.feature_dim == 3
    tokens = model.write(CAPTIONS, sampling=GREEDY)
    other = replace(tokens, hidden=torch.zeros_like(tokens.hidden))
    assert torch.equal(model.condition(tokens)[0].embeds, model.condition(other)[0].embeds)
    expected = model.bridge(ARStates(model.tokenizer.embed(tokens.ids))).embeds
    assert torch.equal(model.condition(tokens)[0].embeds, expected)


@pytest.mark.parametrize("name", ["learned queries", "token embeddings", "layer fusion of the prompt"])
def test_reference_images_reach_them(name: str) -> None:
    """Features in the prompt and latents after the condition, resampled to fewer; on a DiT and in padded batches."""
    with seeded(0):
        head, routes = tiny_head(), {"reference_features": MLPBridge, "reference_latents": PERCEIVER}
        model = Blip3oNext(tiny_ta_tok(), tiny_ar(), BRIDGES[name], head, EDITING, **routes)
    perturbed(model, std=0.2).eval()
    references, captions = tiny_images(2)[:, None], CAPTIONS[:2]
    small = torch.nn.functional.interpolate(references[:, 0], size=(28, 28))[:, None]
    given = {"references": references, "token_references": small}
    edited, plain = generated(model, captions, **given), generated(model, captions)
    assert edited.conditioning.num_appended == PERCEIVER.keywords["num_latents"]
    assert (edited.latents - plain.latents).abs().max() > 1e-3
    for row in range(2):
        alone = generated(
            model, captions[row : row + 1], row, **{key: one[row : row + 1] for key, one in given.items()}
        )
        torch.testing.assert_close(edited.latents[row], alone.latents[0], rtol=0, atol=1e-4)
    only_told = generated(model, captions, token_references=small)
    assert (only_told.latents - plain.latents).abs().max() > 1e-3, "the AR model is told of them"
    step = model.losses(tiny_images(2), captions, token_images=small[:, 0], generator=generators(2), **given)
    (step.cross_entropy + step.flow.sum()).backward()
    for part in (model.reference_features, model.reference_latents):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())  # type: ignore[union-attr]
