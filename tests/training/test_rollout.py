"""Rollouts: what they draw depends on prompt, step and generation alone; and the policy that scores them drew them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.ar import CausalLM
from blip3o.ar.lean import LeanStep
from blip3o.training.policy import score_tokens
from blip3o.training.rollout import Rollout, chunks, generation_generators, minibatches, read_prompts, write_and_render
from tests.tiny import tiny_model

CAPTIONS = ["a red circle", "two blue squares"]


def rolled(captions: list[str], index: list[int], *, step: int = 3, scale: float = 1.0) -> Rollout:
    return write_and_render(
        tiny_model(),
        captions,
        torch.tensor(index),
        num_generations=3,
        seed=0,
        step=step,
        temperature=1.3,
        token_guidance_scale=scale,
        num_inference_steps=1,
        guidance_scale=2.0,
        render_batch_size=4,
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_policy_scores_tokens_as_they_were_drawn(scale: float) -> None:
    rollout = rolled(CAPTIONS, [5, 8], scale=scale)
    scores = score_tokens(tiny_model(), rollout.prompts, rollout.ids, temperature=1.3, token_guidance_scale=scale)
    torch.testing.assert_close(scores.log_probs, rollout.log_probs, rtol=0, atol=1e-5)
    assert scores.log_probs.dtype == torch.float32 and scores.log_probs.requires_grad
    assert not scores.entropy.requires_grad
    assert scores.entropy.min() > 0 and scores.entropy.max() <= torch.log(torch.tensor(64.0)) + 1e-5


def test_entropy_is_that_of_the_image_ids() -> None:
    model, ids = tiny_model(), torch.zeros(1, 16, dtype=torch.int64)
    each = []
    for code in range(64):
        ids[0, 0] = code
        each.append(score_tokens(model, CAPTIONS[:1], ids).log_probs[0, 0].detach())
    log_probs = torch.stack(each)
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-5)
    entropy = score_tokens(model, CAPTIONS[:1], ids).entropy[0, 0]
    assert float(entropy) == pytest.approx(float(-(log_probs.exp() * log_probs).sum()), abs=1e-5)


def test_a_prompt_draws_the_same_whatever_stands_beside_it() -> None:
    both, alone = rolled(CAPTIONS, [5, 8]), rolled(CAPTIONS[1:], [8])
    assert torch.equal(both.ids[3:], alone.ids)
    assert abs(both.images[3:].astype(int) - alone.images.astype(int)).max() <= 1
    assert len({tuple(row) for row in both.ids.tolist()}) == 6
    assert both.images.shape == (6, 32, 32, 3) and both.images.dtype.name == "uint8"
    assert both.prompts == [CAPTIONS[0]] * 3 + [CAPTIONS[1]] * 3


def test_steps_and_indices_draw_different_images() -> None:
    first = rolled(CAPTIONS[:1], [5])
    assert torch.equal(first.ids, rolled(CAPTIONS[:1], [5]).ids)
    assert not torch.equal(first.ids, rolled(CAPTIONS[:1], [6]).ids)
    assert not torch.equal(first.ids, rolled(CAPTIONS[:1], [5], step=4).ids)


def test_generators_differ_by_everything_that_should_matter() -> None:
    seeds = set()
    for seed in (0, 1):
        for step in (0, 1):
            for purpose in ("tokens", "noise"):
                made = generation_generators(seed, torch.tensor([3, 4]), step=step, num_generations=2, purpose=purpose)
                seeds |= {one.initial_seed() for one in made}
    assert len(seeds) == 2 * 2 * 2 * 4


def test_a_group_s_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(), []
    run, advance = CausalLM._run, LeanStep.advance

    def counted(self: CausalLM, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> object:
        rows.append(len(inputs["input_ids"]))
        return run(self, inputs, *args, **kwargs)

    def counted_step(self: LeanStep, ids: Tensor) -> object:
        rows.append(len(ids))
        return advance(self, ids)

    monkeypatch.setattr(CausalLM, "_run", counted)
    monkeypatch.setattr(LeanStep, "advance", counted_step)
    model.write([CAPTIONS[0]] * 4 + [CAPTIONS[1]] * 4)
    assert rows == [2] + [8] * 16


def test_minibatches_hold_every_prompt_equally() -> None:
    assert minibatches(3, 4, None) == [range(4)]
    assert minibatches(3, 4, 6) == [range(2), range(2, 4)]
    for size in (2, 4, 9, 24):
        with pytest.raises(ValueError, match=rf"minibatch_size \({size}\) must be the batch of 3 prompts times"):
            minibatches(3, 4, size)
    assert chunks(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert chunks(5, None) == [slice(0, 5)] and chunks(0, None) == []


def test_batches_of_prompts_or_captions_are_read() -> None:
    assert read_prompts({"prompt": ["a"], "metadata": [{"tag": 1}]}) == (["a"], [{"tag": 1}])
    assert read_prompts({"caption": ["a", "b"]}) == (["a", "b"], [{}, {}])
    with pytest.raises(ValueError, match=r"the batch holds \['image'\]; it must hold `prompt` or `caption`"):
        read_prompts({"image": 0})
