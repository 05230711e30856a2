"""Generating: both sides give the same, a difference stops the measurement, and the limits are counted right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from blip3o.ar import CausalLM
from blip3o.bench import generate as module
from blip3o.bench import released
from blip3o.bench.generate import bench_generate, decoding_work
from blip3o.bench.shapes import MID, NANO, build
from blip3o.bench.timing import Stopwatch


@pytest.mark.parametrize("shape", ["nano", "tiny"])
def test_the_released_procedure_gives_the_same_and_both_are_timed(shape: str) -> None:
    report = bench_generate(shape, batch_size=2, repeats=1, num_inference_steps=2, dtype="float32")
    assert "greedy ids equal" in report.checks["float32"]
    assert list(report.times["released procedure"]) == ["tokens", "states", "denoising", "pixels", "total"]
    assert list(report.times["blip3o"]) == ["tokens", "denoising", "pixels", "total"]
    assert report.speedups()["blip3o"] > 0
    assert report.notes["decoding"]["share_of_the_limit"] > 0
    assert report.notes["denoising"]["gflop_a_step"] > 0


def test_decoding_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(CausalLM, "compile_decoding", lambda self: asked.append(self))
    report = bench_generate(NANO, repeats=1, compile_decoding=True)
    assert len(asked) == 1 and report.settings["compile_decoding"] is True
    with pytest.raises(ValueError, match=r"batch_size \(17\) must be at most 16 with compile_decoding"):
        bench_generate(NANO, batch_size=17, compile_decoding=True)


def test_in_bfloat16_ids_that_differ_are_counted() -> None:
    report = bench_generate(NANO, repeats=1)
    assert " of 36 greedy ids differ; equal before the first one" in report.checks["bfloat16"]
    assert report.settings["dtype"] == "bfloat16" and report.settings["tokens"] == 36


def test_ids_before_the_first_that_differs_are_counted_by_row() -> None:
    ids = torch.arange(8).view(2, 4)
    other = ids.clone()
    other[0, 1] = 9
    assert module._equal_at_first(ids, other) == "2.5" and module._equal_at_first(ids, ids) == "4"


@pytest.mark.parametrize(("moved", "told"), [("ids", "2 of 36 greedy ids differ"), ("latents", "latents differ .* by")])
def test_nothing_is_timed_where_the_sides_differ(moved: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = released.generate

    def other(*given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids, latents = own(*given, **named)
        if moved == "ids":
            ids[0, 3:5] += 1
        else:
            latents[0, 0, 0, 0] += 2e-4
        return ids, latents

    monkeypatch.setattr(released, "generate", other)
    monkeypatch.setattr(module, "compare", lambda *given: pytest.fail("it was timed"))
    with pytest.raises(ValueError, match=told):
        bench_generate(NANO)


def test_the_released_procedure_samples_what_it_is_told_to() -> None:
    """Top-k of one is greedy; the published sampling is not."""
    measured = build(NANO, 2)
    bench = module._Bench(measured, 2)

    def ids(sampling: Any) -> torch.Tensor:
        return bench.theirs(sampling, Stopwatch(torch.device("cpu")))[0]

    greedy = ids(module.GREEDY)
    assert torch.equal(greedy, ids(module.Sampling(temperature=1.0, top_k=1, top_p=1.0)))
    assert not torch.equal(greedy, ids(module.Sampling(temperature=1.0, top_k=0, top_p=1.0)))


def test_the_most_likely_token_of_all_is_an_image_token() -> None:
    measured = build(NANO, 3)
    model = measured.model
    vocabulary = model.sequences.vocabulary
    assert len(set(measured.captions)) == 3
    ids, mask = model.sequences.prompts(measured.captions)
    assert mask.all(), "captions have one length"
    with torch.no_grad():
        logits = model.ar(ids, mask, logits_for=(0, vocabulary.size)).logits
    assert logits.shape[-1] == len(model.ar.head) and (logits.argmax(-1) >= vocabulary.first_code).all()


def test_weights_are_seeded() -> None:
    one, same, other = (build(NANO, 1, seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["ar.lm.lm_head.weight"], other["ar.lm.lm_head.weight"])


def test_the_work_of_a_token_is_counted_by_hand() -> None:
    ar = build(NANO, 1).model.ar
    hidden, inner, keys, codes = 32, 48, 16, 48
    layer = hidden * (32 + 2 * keys) + 32 * hidden + 3 * hidden * inner + 2 * hidden + 2 * 16  # the norms' gains too
    numbers = 2 * layer + codes * hidden
    weights, kept, flops = decoding_work(ar, positions=10)
    assert weights == 4 * numbers
    assert kept == 4 * 2 * 2 * keys * 10
    assert flops == 2 * numbers + 2 * 4 * 2 * 16 * 10


def test_mid_has_the_sizes_that_it_claims() -> None:
    with torch.device("meta"):
        model = replace(MID, text_size=70).build()  # but for the text's words, which take long to list
        assert model.tokenizer.num_tokens() == 729 and model.tokenizer.codebook_size == 65_536
        sana = sum(p.numel() for p in model.diffusion.denoiser.parameters())
    assert 58e6 < sana < 62e6
    assert (model.ar.hidden_size, model.ar.num_layers, MID.text_size) == (512, 12, 151_936)


def test_the_number_of_tokens_can_be_chosen() -> None:
    assert build(NANO, 1, num_tokens=9).model.tokenizer.num_tokens() == 9
    assert bench_generate(NANO, repeats=1, num_tokens=9).settings["tokens"] == 9
    with pytest.raises(ValueError, match=r"num_tokens \(10\) must be a square number"):
        build(NANO, 1, num_tokens=10)
    with pytest.raises(ValueError, match=r"num_tokens \(64\) must be left out with shape 'tiny'"):
        build("tiny", 1, num_tokens=64)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \('large'\) must be one of \['mid', 'nano', 'published', 'tiny'\]"):
        build("large", 1)
