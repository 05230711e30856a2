"""Blip3oNext: losses against their definitions, rows that do not depend on their batch, and its config."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from blip3o.ar import Sampling
from blip3o.bridge import MLPBridge
from blip3o.checkpoints import instantiate
from blip3o.model import Blip3oNext
from blip3o.prompts import Supervise
from blip3o.structures import IGNORE_INDEX, ARStates
from tests.tiny import PLAIN, generators, perturbed, tiny_ar, tiny_head, tiny_images, tiny_model, tiny_tokenizer

CAPTIONS = ["a red circle", "two blue squares and a green triangle", "circles"]
GREEDY = Sampling(temperature=0.0)


def sequences(model: Blip3oNext, supervise: Supervise = "all"):  # type: ignore[no-untyped-def]
    return model.sequences.training(CAPTIONS, model.tokenizer.encode(tiny_images(3)).ids, supervise)


@pytest.mark.parametrize("supervise", ["all", "answer", "image"])
def test_cross_entropy_is_summed_over_the_supervised_tokens(supervise: Supervise) -> None:
    """Image tokens compete with image tokens alone where only they are supervised, as in decoding."""
    model = tiny_model()
    batch = sequences(model, supervise)
    vocabulary = model.sequences.vocabulary
    first = vocabulary.first_code if supervise == "image" else 0
    logits = model.ar(batch.input_ids, batch.attention_mask, logits_for=(first, vocabulary.size)).logits
    log_probs = logits.log_softmax(-1)
    total, count = torch.zeros(()), 0
    for row, position in (batch.labels != IGNORE_INDEX).nonzero().tolist():
        if position > 0 and batch.attention_mask[row, position - 1]:
            total = total - log_probs[row, position - 1, batch.labels[row, position] - first]
            count += 1
    losses = model.losses(tiny_images(3), CAPTIONS, supervise=supervise, generator=generators(3))
    assert losses.num_tokens == count
    torch.testing.assert_close(losses.cross_entropy, total, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("supervise", ["all", "answer", "image"])
def test_the_losses_of_a_batch_are_those_of_its_rows(supervise: Supervise) -> None:
    model, images = tiny_model(), tiny_images(3)
    whole = model.losses(images, CAPTIONS, supervise=supervise, generator=generators(3))
    rows = [
        model.losses(images[i : i + 1], CAPTIONS[i : i + 1], supervise=supervise, generator=generators(1, i))
        for i in range(3)
    ]
    torch.testing.assert_close(whole.flow, torch.cat([row.flow for row in rows]), rtol=1e-4, atol=1e-5)
    assert whole.num_tokens == sum(row.num_tokens for row in rows)
    total = torch.stack([row.cross_entropy for row in rows]).sum()
    torch.testing.assert_close(whole.cross_entropy, total, rtol=1e-4, atol=1e-3)


def test_only_the_chosen_rows_train_the_diffusion_head() -> None:
    model, images = tiny_model(), tiny_images(3)
    whole = model.losses(images, CAPTIONS, generator=generators(3))
    rows = torch.tensor([0, 2])
    some = model.losses(images, CAPTIONS, rendered_rows=rows, generator=[generators(3)[i] for i in rows])
    torch.testing.assert_close(some.flow, whole.flow[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some.cross_entropy, whole.cross_entropy)
    none = model.losses(images, CAPTIONS, rendered_rows=torch.tensor([], dtype=torch.int64), generator=[])
    assert none.flow.shape == (0,)


def test_dropped_rows_are_conditioned_on_null_states() -> None:
    model, images = tiny_model(), tiny_images(3)
    dropped = torch.tensor([True, False, True])
    plain = model.losses(images, CAPTIONS, generator=generators(3)).flow
    with_drops = model.losses(images, CAPTIONS, dropped=dropped, generator=generators(3)).flow
    positions = 1 + model.tokenizer.num_tokens()
    null = ARStates(torch.zeros(3, positions, model.ar.hidden_size))
    expected = model.diffusion.loss(images, model.bridge(null), generator=generators(3))
    torch.testing.assert_close(with_drops[dropped], expected[dropped], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_drops[~dropped], plain[~dropped], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain)


def test_training_and_generation_give_the_bridge_the_same_states() -> None:
    """Hidden states kept while decoding are those of a training sequence that holds the decoded tokens."""
    model = tiny_model()
    tokens = model.write(CAPTIONS, generator=generators(3))
    batch = model.sequences.training(CAPTIONS, tokens.ids)
    hidden = model.ar(batch.input_ids, batch.attention_mask).hidden[:, batch.condition_mask[0]]
    torch.testing.assert_close(tokens.hidden, hidden, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_part_but_the_tokenizer_and_the_codec() -> None:
    model = tiny_model()
    losses = model.losses(tiny_images(3), CAPTIONS, generator=generators(3))
    losses.flow.sum().backward(retain_graph=True)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.ar.parameters()), "the flow trains the AR"
    losses.cross_entropy.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is name.startswith(("tokenizer.", "diffusion.codec.")), name


def test_writing_gives_an_images_tokens_and_their_states() -> None:
    model = tiny_model()
    tokens = model.write(CAPTIONS, generator=generators(3))
    count = model.tokenizer.num_tokens()
    assert tokens.ids.shape == (3, count) and tokens.hidden.shape == (3, 1 + count, model.ar.hidden_size)
    assert tokens.ids.max() < model.tokenizer.codebook_size
    assert model.tokenizer.decode(tokens.ids).shape == (3, 3, 32, 32)
    assert not tokens.hidden.requires_grad
    assert not torch.equal(tokens.ids[0], tokens.ids[1])


def test_token_guidance_is_against_the_empty_caption() -> None:
    model = tiny_model()
    empty = model.write([""] * 3, sampling=GREEDY)
    none = model.write(CAPTIONS, sampling=GREEDY, token_guidance_scale=0.0)
    assert torch.equal(none.ids[:, 0], empty.ids[:, 0]), "at scale 0 only the empty caption decides"
    plain = model.write(CAPTIONS, sampling=GREEDY)
    guided = model.write(CAPTIONS, sampling=GREEDY, token_guidance_scale=4.0)
    assert not torch.equal(plain.ids, guided.ids)


def test_a_generated_row_depends_on_its_caption_and_generator_alone() -> None:
    model = tiny_model()
    together = model.generate(CAPTIONS, num_inference_steps=2, generator=generators(3))
    again = model.generate(CAPTIONS, num_inference_steps=2, generator=generators(3))
    assert torch.equal(together.tokens.ids, again.tokens.ids) and torch.equal(together.latents, again.latents)
    for row in range(3):
        alone = model.generate([CAPTIONS[row]], num_inference_steps=2, generator=generators(1, row))
        assert torch.equal(together.tokens.ids[row], alone.tokens.ids[0])
        torch.testing.assert_close(together.latents[row], alone.latents[0], rtol=0, atol=1e-4)
    other = model.generate(CAPTIONS, num_inference_steps=2, generator=generators(3, 7))
    assert not torch.equal(together.tokens.ids, other.tokens.ids)


def test_generated_latents_decode_to_images() -> None:
    model = tiny_model()
    rendered = model.generate(CAPTIONS[:1], num_inference_steps=2, generator=generators(1))
    images = model.diffusion.decode(rendered.latents)
    assert images.shape == (1, 3, 32, 32) and images.isfinite().all() and not images.requires_grad


def test_generation_samples_the_head_under_the_written_tokens_and_guidance() -> None:
    model = tiny_model()
    noise = torch.randn(3, 48, 8, 8, generator=torch.Generator().manual_seed(1))
    rendered = model.generate(CAPTIONS, num_inference_steps=2, guidance_scale=3.0, sampling=GREEDY, latents=noise)
    tokens = model.write(CAPTIONS, sampling=GREEDY)
    assert torch.equal(rendered.tokens.ids, tokens.ids)
    states = ARStates(tokens.hidden)
    with torch.no_grad():
        cond, null = model.bridge(states), model.bridge(states.null())
        expected = model.diffusion.sample(cond, num_inference_steps=2, guidance_scale=3.0, negative=null, latents=noise)
    torch.testing.assert_close(rendered.latents, expected, rtol=0, atol=1e-5)
    unguided = model.generate(CAPTIONS, num_inference_steps=2, guidance_scale=1.0, sampling=GREEDY, latents=noise)
    assert not torch.allclose(unguided.latents, rendered.latents)


def test_torchs_own_generator_is_left_alone() -> None:
    model = tiny_model()
    state = torch.get_rng_state()
    model.generate(CAPTIONS, num_inference_steps=2, generator=generators(3))
    model.losses(tiny_images(3), CAPTIONS, generator=generators(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_vocabulary_holds_the_tokenizers_codes_and_three_scales_at_least() -> None:
    model = tiny_model()
    assert model.ar.vocabulary is not None
    assert (model.ar.vocabulary.num_codes, model.ar.vocabulary.num_scales) == (64, 3)


def test_a_bridge_of_other_widths_is_refused() -> None:
    for wrong in (lambda h, c: MLPBridge(h, c + 1), lambda h, c: MLPBridge(h + 1, c)):
        with pytest.raises(ValueError, match="uses the two widths it is given"):
            Blip3oNext(tiny_tokenizer(), tiny_ar(), wrong, tiny_head(), PLAIN)


def test_a_partial_bridge_keeps_its_arguments_and_gets_its_widths() -> None:
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), partial(MLPBridge, depth=3, norm_gain=1.0), tiny_head(), PLAIN)
    assert (model.bridge.in_features, model.bridge.out_features) == (model.ar.hidden_size, model.diffusion.cond_dim)
    stored = model.config()["init_args"]["bridge"]
    assert {key: value for key, value in stored["init_args"].items() if value is not None} == {
        "depth": 3,
        "norm_gain": 1.0,
        "eps": 1e-5,
        "reads": "image_tokens",
    }
    assert instantiate(model.config()).bridge.config() == model.bridge.config()


def test_its_config_builds_it_again() -> None:
    model = tiny_model()
    again = instantiate(model.config()).eval()
    assert again.config() == model.config()
    assert again.template == model.template == PLAIN
    again.load_state_dict(model.state_dict())
    expected = model.generate(CAPTIONS, num_inference_steps=2, generator=generators(3))
    actual = again.generate(CAPTIONS, num_inference_steps=2, generator=generators(3))
    assert torch.equal(actual.tokens.ids, expected.tokens.ids) and torch.equal(actual.latents, expected.latents)


def test_a_step_on_one_batch_lowers_both_losses() -> None:
    model = perturbed(tiny_model(), seed=1, std=0.01)
    model.tokenizer.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(25):
        losses = model.losses(tiny_images(3), CAPTIONS, supervise="image", generator=generators(3))
        cross_entropy, flow = losses.cross_entropy / losses.num_tokens, losses.flow.mean()
        optimizer.zero_grad()
        (cross_entropy + flow).backward()
        optimizer.step()
        history.append((cross_entropy.item(), flow.item()))
    for first, last in zip(history[0], history[-1], strict=True):
        assert last < 0.75 * first


def test_targets_stay_in_evaluation_mode_and_too_many_tokens_are_refused() -> None:
    model = tiny_model().train()
    assert model.training and model.ar.training
    assert not model.tokenizer.training and not model.diffusion.codec.training  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"writes 1024 tokens an image, .* context \(96\)"):
        Blip3oNext(tiny_tokenizer(patch_size=1), tiny_ar(), MLPBridge, tiny_head(), PLAIN)


def test_decoding_and_sampling_keep_no_graph() -> None:
    model = tiny_model()
    ids, mask = model.sequences.prompts(["a red circle"])
    tokens = model.ar.generate(ids, mask, 4, generator=generators(1))
    assert not tokens.hidden.requires_grad and not tokens.log_probs.requires_grad
    condition = model.bridge(ARStates(tokens.hidden))
    head = tiny_head()
    assert not head.sample(condition, num_inference_steps=1, generator=generators(1)).requires_grad
