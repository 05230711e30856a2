"""What every AR backbone must do."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.ar import ARBackbone, ImageVocabulary, Sampling
from blip3o.ar.decoding import filter_logits
from blip3o.prompts import SequenceBuilder
from blip3o.structures import Generated
from tests.tiny import PLAIN, generators, perturbed, rebuilt

NUM_CODES, NUM_TOKENS = 10, 6
CAPTIONS = ("a red circle", "two blue squares left of a green triangle", "circles")
GREEDY = Sampling(temperature=0.0)


_by_contract = ARBackbone.cross_entropy


class ARBackboneContract:
    """Inherit, name the class `Test...` and give `backbone()`."""

    def backbone(self) -> ARBackbone:
        """The same small backbone over `tests.tiny.WORDS` at every call, its vocabulary not extended."""
        raise NotImplementedError

    def ready(self) -> ARBackbone:
        """An extended backbone, perturbed so that no two ids are alike and positions matter."""
        backbone = self.backbone()
        backbone.extend_vocabulary(NUM_CODES)
        return perturbed(backbone, std=0.2).eval()

    def prompts(self, backbone: ARBackbone, captions: tuple[str, ...] = CAPTIONS) -> tuple[Tensor, Tensor]:
        assert backbone.vocabulary is not None
        return SequenceBuilder(backbone.text_tokenizer, backbone.vocabulary, PLAIN).prompts(captions)

    @torch.no_grad()
    def generate(
        self, backbone: ARBackbone, captions: tuple[str, ...] = CAPTIONS, sampling: Sampling = GREEDY, **arguments: Any
    ) -> Generated:
        return backbone.generate(*self.prompts(backbone, captions), NUM_TOKENS, sampling, **arguments)

    @torch.no_grad()
    def second_pass(self, backbone: ARBackbone, ids: Tensor, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Hidden states and image logits at the scale token and the image tokens, from the whole sequence at once."""
        assert backbone.vocabulary is not None
        first, size = backbone.vocabulary.first_code, backbone.vocabulary.size
        prompt, mask = self.prompts(backbone, captions)
        sequence = torch.cat([prompt, ids + first], dim=1)
        output = backbone(sequence, F.pad(mask, (0, NUM_TOKENS), value=True), logits_for=(first, size))
        assert output.logits is not None
        return output.hidden[:, -NUM_TOKENS - 1 :], output.logits[:, -NUM_TOKENS - 1 :]

    def test_hidden_states_have_the_width_it_says(self) -> None:
        backbone = self.ready()
        ids, mask = self.prompts(backbone)
        output = backbone(ids, mask)
        assert output.hidden.shape == (*ids.shape, backbone.hidden_size)
        assert output.logits is None

    def test_a_position_sees_only_what_stands_before_it(self) -> None:
        backbone = self.ready()
        ids, mask = self.prompts(backbone, CAPTIONS[1:2])
        changed = ids.clone()
        changed[:, 4] = ids[:, 0]
        before, after = backbone(ids, mask).hidden, backbone(changed, mask).hidden
        torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=1e-5)
        assert ((after - before)[:, 4:].abs().amax(dim=-1) > 1e-3).all()

    def test_logits_are_given_for_the_ids_and_positions_asked_for(self) -> None:
        backbone = self.ready()
        assert backbone.vocabulary is not None
        ids, mask = self.prompts(backbone)
        every = backbone(ids, mask, logits_for=(0, backbone.vocabulary.size)).logits
        assert every is not None and every.shape == (*ids.shape, backbone.vocabulary.size)
        at = torch.zeros_like(mask)
        at[0, -1] = at[1, 2] = True
        some = backbone(ids, mask, logits_for=(3, 8), logits_at=at).logits
        torch.testing.assert_close(some, torch.stack([every[0, -1, 3:8], every[1, 2, 3:8]]), rtol=1e-4, atol=1e-5)

    def test_cross_entropy_is_that_of_its_logits(self) -> None:
        """Also as the contract itself computes it, for a backbone that says nothing of it."""
        backbone = self.ready()
        assert backbone.vocabulary is not None
        ids, mask = self.prompts(backbone)
        at = mask & (torch.arange(ids.shape[1]) % 2 == 1)
        first, last = 3, backbone.vocabulary.size - 1
        targets = torch.arange(int(at.sum())) % (last - first) + first
        given = {"targets": targets, "targets_at": at, "ids": (first, last), "layers": [1]}
        expected = backbone(ids, mask, logits_for=(first, last), logits_at=at, layers=[1])
        loss = F.cross_entropy(expected.logits, targets - first, reduction="sum")
        for output, own in (backbone.cross_entropy(ids, mask, **given), _by_contract(backbone, ids, mask, **given)):
            torch.testing.assert_close(own, loss, rtol=1e-5, atol=1e-5)
            assert output.logits is None and torch.equal(output.hidden, expected.hidden)
            assert torch.equal(output.layers, expected.layers)

    @pytest.mark.parametrize("captions", [CAPTIONS[:1], CAPTIONS], ids=["one row", "left-padded rows"])
    @pytest.mark.parametrize(
        "sampling",
        [GREEDY, Sampling(), Sampling(temperature=1.5, top_k=4, top_p=0.9)],
        ids=["greedy", "all", "filtered"],
    )
    def test_what_decoding_kept_equals_a_second_pass(self, captions: tuple[str, ...], sampling: Sampling) -> None:
        """Hidden states and log-probabilities of the cached pass are those of a full forward pass."""
        backbone = self.ready()
        generated = self.generate(backbone, captions, sampling, generator=generators(len(captions)))
        hidden, logits = self.second_pass(backbone, generated.ids, captions)
        assert generated.hidden.shape == (len(captions), 1 + NUM_TOKENS, backbone.hidden_size)
        torch.testing.assert_close(generated.hidden, hidden, rtol=1e-4, atol=1e-4)
        if sampling.temperature > 0:
            logits = torch.stack([filter_logits(row, sampling) for row in logits])
        expected = logits[:, :-1].log_softmax(-1).gather(-1, generated.ids[..., None])[..., 0]
        torch.testing.assert_close(generated.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert generated.log_probs.isfinite().all() and (generated.log_probs < 0).any()

    def test_temperature_zero_takes_the_most_likely_token_whatever_the_generator(self) -> None:
        backbone = self.ready()
        ids = self.generate(backbone, generator=generators(3)).ids
        _, logits = self.second_pass(backbone, ids, CAPTIONS)
        assert torch.equal(ids, logits[:, :-1].argmax(-1))
        assert torch.equal(ids, self.generate(backbone, generator=generators(3, first_seed=9)).ids)
        assert len(ids.unique()) > 1, "a constant model proves nothing"

    def test_a_row_of_a_padded_batch_equals_the_row_alone(self) -> None:
        backbone = self.ready()
        together = self.generate(backbone)
        for row, caption in enumerate(CAPTIONS):
            alone = self.generate(backbone, (caption,))
            assert torch.equal(together.ids[row], alone.ids[0])
            torch.testing.assert_close(together.hidden[row], alone.hidden[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.log_probs[row], alone.log_probs[0], rtol=1e-4, atol=1e-4)

    def test_equal_prompts_give_what_each_gives_alone(self) -> None:
        backbone, captions = self.ready(), (CAPTIONS[1], CAPTIONS[0], CAPTIONS[1], CAPTIONS[1])
        sampling = Sampling(temperature=2.0)
        several = self.generate(backbone, captions, sampling, generator=generators(4))
        for row, caption in enumerate(captions):
            alone = self.generate(backbone, (caption,), sampling, generator=generators(1, row))
            assert torch.equal(several.ids[row], alone.ids[0])
            torch.testing.assert_close(several.hidden[row], alone.hidden[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(several.log_probs[row], alone.log_probs[0], rtol=1e-4, atol=1e-4)

    def test_a_row_draws_from_its_own_generator_alone(self) -> None:
        backbone = self.ready()
        sampling = Sampling(temperature=2.0)
        together = self.generate(backbone, sampling=sampling, generator=generators(3)).ids
        for row, caption in enumerate(CAPTIONS):
            alone = self.generate(backbone, (caption,), sampling, generator=generators(1, first_seed=row)).ids
            assert torch.equal(together[row], alone[0])
        assert not torch.equal(together, self.generate(backbone, sampling=sampling, generator=generators(3, 7)).ids)
        with pytest.raises(ValueError, match="2 generators for 3 rows"):
            self.generate(backbone, sampling=sampling, generator=generators(2))

    def test_ids_are_codes_at_any_temperature(self) -> None:
        backbone = self.ready()
        seen = set()
        for seed in range(4):
            ids = self.generate(backbone, sampling=Sampling(temperature=50.0), generator=generators(3, 3 * seed)).ids
            assert ids.shape == (3, NUM_TOKENS) and ids.dtype == torch.int64
            seen |= set(ids.flatten().tolist())
        assert seen == set(range(NUM_CODES)), "at a high temperature all codes and only codes are drawn"

    def test_token_guidance_extrapolates_the_logits(self) -> None:
        backbone = self.ready()
        negative = self.prompts(backbone, ("a",) * 3)
        scale = 3.0
        generated = self.generate(backbone, negative=negative, token_guidance_scale=scale)
        hidden, conditional = self.second_pass(backbone, generated.ids, CAPTIONS)
        _, unconditional = self.second_pass(backbone, generated.ids, ("a",) * 3)
        logits = (unconditional + scale * (conditional - unconditional))[:, :-1]
        assert torch.equal(generated.ids, logits.argmax(-1))
        expected = logits.log_softmax(-1).amax(-1)
        torch.testing.assert_close(generated.log_probs, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(generated.hidden, hidden, rtol=1e-4, atol=1e-4)

    def test_token_guidance_of_one_is_none_and_another_needs_negative_prompts(self) -> None:
        backbone = self.ready()
        plain = self.generate(backbone)
        guided = self.generate(backbone, negative=self.prompts(backbone, ("a",) * 3), token_guidance_scale=1.0)
        assert torch.equal(plain.ids, guided.ids) and torch.equal(plain.hidden, guided.hidden)
        with pytest.raises(ValueError, match=r"token_guidance_scale \(2.0\) needs negative"):
            self.generate(backbone, token_guidance_scale=2.0)

    def test_sequences_beyond_the_context_are_refused(self) -> None:
        backbone = self.ready()
        ids, mask = self.prompts(backbone, ("a red",))
        if backbone.context_length == sys.maxsize:
            assert backbone.generate(ids, mask, 100, GREEDY).ids.shape == (1, 100)
            return
        room = backbone.context_length - ids.shape[1]
        with torch.no_grad():
            assert backbone.generate(ids, mask, room, GREEDY).ids.shape == (1, room)
            with pytest.raises(ValueError, match=f"context holds {backbone.context_length}"):
                backbone.generate(ids, mask, room + 1, GREEDY)
            longer = self.prompts(backbone, ("a red circle",))
            with pytest.raises(ValueError, match=f"context holds {backbone.context_length}"):
                backbone.generate(ids, mask, room, GREEDY, negative=longer, token_guidance_scale=2.0)
            with pytest.raises(ValueError, match=f"the model's context {backbone.context_length}"):
                backbone(torch.zeros(1, backbone.context_length + 1, dtype=torch.long))

    @torch.no_grad()
    def test_embeddings_given_take_the_place_of_the_ids_own(self) -> None:
        backbone = self.ready()
        ids, mask = self.prompts(backbone)
        embeds = backbone.embed(ids)
        assert embeds.shape == (*ids.shape, backbone.hidden_size)
        own, given = backbone(ids, mask).hidden, backbone(ids, mask, inputs_embeds=embeds).hidden
        assert torch.equal(own, given)
        changed = backbone(ids, mask, inputs_embeds=embeds * torch.linspace(0.5, 2, embeds.shape[-1])).hidden
        assert (own - changed)[mask].abs().max() > 1e-3
        tokens = backbone.generate(ids, mask, NUM_TOKENS, GREEDY)
        again = backbone.generate(ids, mask, NUM_TOKENS, GREEDY, inputs_embeds=embeds)
        assert torch.equal(tokens.ids, again.ids) and torch.equal(tokens.hidden, again.hidden)
        other = backbone.generate(ids, mask, NUM_TOKENS, GREEDY, inputs_embeds=embeds.flip(1))
        assert not torch.equal(tokens.hidden, other.hidden)

    @torch.no_grad()
    def test_layers_are_kept_in_the_same_pass(self) -> None:
        """The states of layers are those a full pass gives, and asking for them changes nothing else."""
        backbone = self.ready()
        last = backbone.num_layers
        asked = [0, 1, last, -1]
        ids, mask = self.prompts(backbone)
        plain, output = backbone(ids, mask), backbone(ids, mask, layers=asked)
        assert plain.layers is None and torch.equal(plain.hidden, output.hidden)
        assert output.layers.shape == (len(ids), 4, ids.shape[1], backbone.hidden_size)
        assert torch.equal(output.layers[:, 3], output.hidden) and torch.equal(output.layers[:, 2], output.hidden)
        for one, other in ((0, 1), (1, 2)):
            assert (output.layers[:, one] - output.layers[:, other])[mask].abs().max() > 1e-3
        tokens, kept = self.generate(backbone), self.generate(backbone, layers=asked)
        assert tokens.layers is None
        assert torch.equal(tokens.ids, kept.ids) and torch.equal(tokens.hidden, kept.hidden)
        assert kept.layers.shape == (len(ids), 4, 1 + NUM_TOKENS, backbone.hidden_size)
        assert torch.equal(kept.layers[:, 3], kept.hidden)
        sequence = torch.cat([ids, kept.ids + backbone.vocabulary.first_code], dim=1)
        whole = backbone(sequence, F.pad(mask, (0, NUM_TOKENS), value=True), layers=asked).layers
        torch.testing.assert_close(kept.layers, whole[:, :, -NUM_TOKENS - 1 :], rtol=1e-4, atol=1e-4)
        negative = self.prompts(backbone, ("a",) * 3)
        guided = self.generate(backbone, negative=negative, token_guidance_scale=2.0, layers=[1])
        assert guided.layers.shape == (len(ids), 1, 1 + NUM_TOKENS, backbone.hidden_size)
        with pytest.raises(ValueError, match=rf"layers names \[{last + 1}\]; the model has 0..{last}"):
            backbone(ids, mask, layers=[1, last + 1])

    def test_training_reaches_every_parameter_that_text_passes_and_padding_brings_no_nan(self) -> None:
        backbone = self.ready().train()
        assert backbone.vocabulary is not None
        ids, mask = self.prompts(backbone)
        output = backbone(ids, mask, logits_for=(0, backbone.vocabulary.size), logits_at=mask)
        assert output.logits is not None
        F.cross_entropy(output.logits, ids[mask]).backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters() if name not in self.untrained(backbone)}
        assert not [name for name, grad in gradients.items() if grad is None]
        assert not [name for name, grad in gradients.items() if grad is not None and not grad.isfinite().all()]
        assert sum(bool(grad.any()) for grad in gradients.values() if grad is not None) > 0.9 * len(gradients)

    def untrained(self, backbone: ARBackbone) -> set[str]:
        """Names of the parameters that text alone does not pass."""
        return set()

    def test_extending_adds_ids_after_the_text_and_keeps_what_text_means(self) -> None:
        backbone = self.backbone().eval()
        text = len(backbone.text_tokenizer)
        ids = torch.arange(text)[None]
        before = backbone(ids, logits_for=(0, text))
        vocabulary = backbone.extend_vocabulary(NUM_CODES, num_scales=4)
        assert vocabulary == backbone.vocabulary == ImageVocabulary(text, NUM_CODES, 4)
        after = backbone(ids, logits_for=(0, text))
        assert torch.equal(before.hidden, after.hidden) and torch.equal(before.logits, after.logits)

    def test_extending_again_does_nothing_and_otherwise_is_refused(self) -> None:
        backbone = self.ready()
        state = {key: value.clone() for key, value in backbone.state_dict().items()}
        vocabulary = backbone.vocabulary
        assert backbone.extend_vocabulary(NUM_CODES) is vocabulary
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
        for wrong in ({"num_codes": NUM_CODES + 1}, {"num_codes": NUM_CODES, "num_scales": 4}):
            with pytest.raises(ValueError, match="build the backbone anew"):
                backbone.extend_vocabulary(**wrong)

    def test_generating_before_extending_is_refused(self) -> None:
        ids = torch.ones(1, 3, dtype=torch.int64)
        with pytest.raises(ValueError, match="call extend_vocabulary"):
            self.backbone().generate(ids, ids.bool(), 2)

    def test_its_config_builds_it_again(self) -> None:
        backbone = self.ready()
        again = rebuilt(backbone)
        assert again.config() == backbone.config()
        again.extend_vocabulary(NUM_CODES)
        again.load_state_dict(backbone.state_dict())
        assert torch.equal(self.generate(again.eval()).ids, self.generate(backbone).ids)
