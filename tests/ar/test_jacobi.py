"""Jacobi decoding: the ids, states and probabilities of sequential decoding, in fewer passes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from blip3o.ar import ARBackbone, CausalLM, Sampling, jacobi
from blip3o.ar.decoding import filter_logits, guided
from blip3o.structures import Generated
from tests.ar.backbones import causal, vision
from tests.ar.contract import CAPTIONS, GREEDY, ARBackboneContract
from tests.tiny import generators, perturbed

NUM_TOKENS = 24
JACOBI = replace(GREEDY, decoding="jacobi", jacobi_window=7)


class _Decoding(ARBackboneContract):
    """The contract, its tokens decoded by windows."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def backbone(self) -> CausalLM:
        return causal(self.model_type)

    def generate(
        self, backbone: ARBackbone, captions: tuple[str, ...] = CAPTIONS, sampling: Sampling = GREEDY, **arguments: Any
    ) -> Generated:
        return super().generate(backbone, captions, replace(sampling, decoding="jacobi", jacobi_window=4), **arguments)


def decoded(backbone: ARBackbone, sampling: Sampling, captions: tuple[str, ...] = CAPTIONS, **given: Any) -> Generated:
    return backbone.generate(*_Decoding("qwen3").prompts(backbone, captions), NUM_TOKENS, sampling, **given)


def negative(backbone: ARBackbone, rows: int = len(CAPTIONS)) -> dict[str, Any]:
    prompts = _Decoding("qwen3").prompts(backbone, ("a",) * rows)
    return {"negative": prompts, "token_guidance_scale": 2.0}


CONTRACT = (
    ARBackboneContract.test_temperature_zero_takes_the_most_likely_token_whatever_the_generator,
    ARBackboneContract.test_a_row_of_a_padded_batch_equals_the_row_alone,
    ARBackboneContract.test_equal_prompts_give_what_each_gives_alone,
    ARBackboneContract.test_a_row_draws_from_its_own_generator_alone,
    ARBackboneContract.test_ids_are_codes_at_any_temperature,
    ARBackboneContract.test_token_guidance_extrapolates_the_logits,
    ARBackboneContract.test_token_guidance_of_one_is_none_and_another_needs_negative_prompts,
    ARBackboneContract.test_layers_are_kept_in_the_same_pass,
)


@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__)
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
def test_what_the_contract_asks_of_decoding_holds(model_type: str, test: Callable[[Any], None]) -> None:
    test(_Decoding(model_type))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=1.5, top_k=4, top_p=0.9)], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_states_and_probabilities_equal_a_second_pass(model_type: str, sampling: Sampling) -> None:
    _Decoding(model_type).test_what_decoding_kept_equals_a_second_pass(CAPTIONS, sampling)


def same(one: Generated, other: Generated) -> None:
    assert torch.equal(one.ids, other.ids)
    for name in ("hidden", "log_probs", "layers"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guides", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "cohere2"])
def test_the_most_likely_ids_are_those_of_sequential_decoding(model_type: str, guides: bool) -> None:
    """Prompts of three lengths; windows of one draft, of some, and longer than the image."""
    backbone = _Decoding(model_type).ready()
    given = {"layers": [0, 1, -1], **(negative(backbone) if guides else {})}
    expected = decoded(backbone, GREEDY, **given)
    assert expected.num_forwards.tolist() == [NUM_TOKENS] * 3
    paces = []
    for window in (2, 7, 64):
        generated = decoded(backbone, replace(JACOBI, jacobi_window=window), **given)
        same(generated, expected)
        assert (generated.num_forwards <= NUM_TOKENS).all() and (generated.num_forwards < NUM_TOKENS).any()
        paces.append(len(generated.num_forwards.unique()))
    assert max(paces) > 1, "rows of one pace prove little"


def test_reference_images_that_the_model_reads_itself() -> None:
    """Positions that count rows and columns go on from where they end."""
    backbone = vision("qwen3_vl")
    backbone.extend_vocabulary(10)
    perturbed(backbone, std=0.2).eval()
    ids, mask = _Decoding("qwen3").prompts(backbone)
    pads = torch.tensor(backbone.image_ids(1, 16, 16)).expand(3, -1)
    ids, mask = torch.cat([ids[:, :-1], pads, ids[:, -1:]], 1), F.pad(mask, (0, pads.shape[1]), value=True)
    images = torch.rand(3, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, generated = (
        backbone.generate(ids, mask, NUM_TOKENS, sampling, images=images, layers=[1]) for sampling in (GREEDY, JACOBI)
    )
    same(generated, expected)
    assert generated.num_forwards.sum() < expected.num_forwards.sum()


def test_embeddings_in_place_of_ids() -> None:
    backbone = _Decoding("qwen3").ready()
    embeds = backbone.embed(_Decoding("qwen3").prompts(backbone)[0]).flip(1).detach()
    expected, generated = (decoded(backbone, one, inputs_embeds=embeds, layers=[1]) for one in (GREEDY, JACOBI))
    same(generated, expected)


@pytest.mark.parametrize("guides", [False, True], ids=["plain", "guided"])
def test_a_row_is_the_same_whatever_the_others_do(guides: bool) -> None:
    """Ids, passes, and what is left of its generator, though the rows end after different numbers of passes."""
    backbone = _Decoding("gemma3_text").ready()
    sampling = replace(JACOBI, temperature=0.7)
    own = generators(3)
    together = decoded(backbone, sampling, generator=own, layers=[1], **(negative(backbone) if guides else {}))
    assert len(together.num_forwards.unique()) > 1
    for row, caption in enumerate(CAPTIONS):
        generator = generators(1, row)
        given = negative(backbone, 1) if guides else {}
        alone = decoded(backbone, sampling, (caption,), generator=generator, layers=[1], **given)
        parts = (together.ids, together.hidden, together.log_probs, together.layers)
        same(alone, Generated(*(part[[row]] for part in parts[:3]), layers=parts[3][[row]]))
        assert alone.num_forwards == together.num_forwards[row]
        assert torch.equal(generator[0].get_state(), own[row].get_state())


def test_the_context_is_used_to_its_end_and_no_further() -> None:
    backbone = _Decoding("qwen3").ready()
    ids, mask = _Decoding("qwen3").prompts(backbone, ("a red",))
    room, furthest = backbone.context_length - ids.shape[1], []
    decoder = backbone.lm.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, named: furthest.append(int(named["position_ids"].max())), with_kwargs=True
    )
    assert backbone.generate(ids, mask, room, JACOBI).ids.shape == (1, room)
    assert max(furthest) == backbone.context_length - 1
    handle.remove()
    with pytest.raises(ValueError, match=f"context holds {backbone.context_length}"):
        backbone.generate(ids, mask, room + 1, JACOBI)


@pytest.mark.parametrize("model_type", ["mamba2", "falcon_h1", "qwen3_next", "lfm2"])
def test_a_state_that_can_not_be_taken_back_is_refused(model_type: str) -> None:
    backbone = _Decoding(model_type).ready()
    told = rf"decoding \('jacobi'\) .* model_type \({model_type}\) .*; set decoding to 'sequential'"
    with pytest.raises(ValueError, match=told):
        decoded(backbone, JACOBI)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"decoding": "parallel"}, r"decoding \('parallel'\) must be one of \['sequential', 'jacobi'\]"),
        ({"jacobi_window": 1}, r"jacobi_window \(1\) must be at least 2"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(**given)


CODES, LENGTH, COUNT = 3, 4, 5_000
SAMPLED = {
    "all": (Sampling(temperature=2.0, top_k=0, top_p=1.0), 1.0),
    "filtered": (Sampling(temperature=2.5, top_k=2, top_p=0.9), 1.0),
    "guided": (Sampling(temperature=2.5, top_k=0, top_p=1.0), 2.0),
}


class _Few(_Decoding):
    """Three codes, of which each depends much on those before."""

    def ready(self) -> CausalLM:
        backbone = self.backbone()
        backbone.extend_vocabulary(CODES)
        return perturbed(backbone, std=0.4).eval()


@torch.no_grad()
def p_value(backbone: CausalLM, sampling: Sampling, scale: float, seed: int = 0) -> float:
    """How well the sequences drawn fit the probabilities that whole passes give to every sequence there is."""
    every = torch.tensor(list(itertools.product(range(CODES), repeat=LENGTH)))
    first = backbone.vocabulary.first_code

    def logits(caption: str) -> Tensor:
        prompt, _ = _Few("llama").prompts(backbone, (caption,))
        whole = torch.cat([prompt.expand(len(every), -1), every + first], dim=1)
        return backbone(whole, logits_for=(first, first + CODES)).logits[:, -LENGTH - 1 : -1]

    both = torch.cat([logits("a red circle"), logits("a")]) if scale != 1 else logits("a red circle")
    filtered = filter_logits(guided(both, scale).flatten(0, 1), sampling).view(*every.shape, -1)
    log_probs = filtered.log_softmax(-1).gather(-1, every[..., None])[..., 0]
    expected = log_probs.sum(1).double().exp()
    given = negative(backbone, COUNT) if scale != 1 else {}
    prompts = _Few("llama").prompts(backbone, ("a red circle",) * COUNT)
    sampling = replace(sampling, decoding="jacobi", jacobi_window=3)
    generated = backbone.generate(*prompts, LENGTH, sampling, torch.Generator().manual_seed(seed), **given)
    assert generated.num_forwards.float().mean() < 0.9 * LENGTH, "otherwise little was drafted well"
    index = (generated.ids * CODES ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    counts = torch.bincount(index, minlength=len(every)).double()
    assert torch.equal(every[index], generated.ids)
    possible = expected > 0
    if counts[~possible].any():
        return 0.0
    rare = possible & (expected * COUNT < 5)  # one cell for what is too rare for the test
    cells = possible & ~rare
    assert cells.sum() > 7, "one sequence alone proves nothing"
    seen, wanted = (
        torch.cat([values[cells], values[rare].sum()[None]]) if rare.any() else values[cells]
        for values in (counts, expected / expected.sum() * COUNT)
    )
    return float(chisquare(seen, wanted).pvalue)


@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_sequences_are_drawn_as_often_as_they_are_likely(name: str) -> None:
    assert p_value(_Few("llama").ready(), *SAMPLED[name]) > 1e-3


def _keep_all(new: Tensor, old: Tensor, drafts: Tensor, numbers: Tensor) -> Tensor:
    return torch.full((len(drafts),), drafts.shape[1])


def _replace_by_the_new(new: Tensor, old: Tensor, numbers: Tensor) -> Tensor:
    return jacobi.invert(new, numbers)


@pytest.mark.parametrize(
    ("name", "wrong"), [("count_kept", _keep_all), ("replace_draft", _replace_by_the_new)], ids=["keep all", "no rest"]
)
def test_wrong_rules_would_be_found_out(
    name: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.signature(wrong).parameters.keys() == inspect.signature(getattr(jacobi, name)).parameters.keys()
    monkeypatch.setattr(jacobi, name, wrong)
    assert p_value(_Few("llama").ready(), *SAMPLED["all"]) < 1e-6
