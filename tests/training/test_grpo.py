"""GRPOModule: it learns, only the AR model moves, ratios start at 1, bad numbers move nothing, runs resume exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import repeat
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from blip3o import Blip3oPipeline
from blip3o.pipeline import GenerationDefaults
from blip3o.training.averaging import EMA
from blip3o.training.base import Optimization
from blip3o.training.callbacks import ExportModel
from blip3o.training.grpo import GRPOModule
from blip3o.training.policy import score_tokens
from blip3o.training.rollout import TokenRollout
from tests.tiny import tiny_model
from tests.training.toy import Brightness, Scripted, fit, grpo

CAPTION = ["a red circle"]


def state(module: GRPOModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts of which some tensor changed, in any bit."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def constant(lr: float) -> Optimization:
    return Optimization(lr=lr, schedule="linear", warmup_steps=0, min_ratio=1.0)


class Painted(GRPOModule):
    """Pictures that show their tokens: a cell is white where its id is one of the lower half."""

    def roll_out(self, prompts: list[str], index: torch.Tensor, step: int) -> TokenRollout:
        rollout = super().roll_out(prompts, index, step)
        cells = (rollout.ids < 32).numpy().astype(np.uint8) * 255
        return replace(rollout, images=repeat(cells, "b (h w) -> b (h 8) (w 8) c", h=4, c=3))


def test_the_reward_rises_and_only_the_ar_model_moves() -> None:
    settings = {"num_generations": 8, "num_inference_steps": 1, "guidance_scale": 1.0, "beta": None}
    module = Painted(tiny_model(), [Brightness()], optimization=constant(5e-3), **settings)  # type: ignore[arg-type]
    before = state(module)
    steps = fit(module, steps=12, batch_size=4).steps
    assert steps[0]["reward"] < 0.6 and steps[-1]["reward"] > 0.8
    assert moved(before, state(module)) == {"ar"}
    assert all(one["skipped_updates"] == one["nan_rewards"] == 0 for one in steps)
    assert {"reward/brightness", "entropy", "ratio", "clip_fraction", "grad_norm", "zero_spread"} < set(steps[0])


def test_the_first_update_of_every_rollout_has_ratio_one_and_later_ones_have_not() -> None:
    seen: list[float] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/ratio"]))

    fit(grpo(), steps=3, callbacks=[Keep()])
    assert seen == pytest.approx([1.0] * 3, abs=1e-4)
    seen.clear()
    history = fit(grpo(num_iterations=3, minibatch_size=4), steps=12, callbacks=[Keep()])
    assert len(seen) == 2  # two rollouts of two minibatches, three times each
    assert all(one["clip_fraction"] > 0 for one in history.steps)


def test_a_policy_other_than_the_one_that_drew_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any, **kwargs: Any) -> Any:
        return score_tokens(*args, **{**kwargs, "temperature": 1.1})

    monkeypatch.setattr("blip3o.training.grpo.score_tokens", off)
    with pytest.raises(ValueError, match=r"ratio is off 1 by .*precision 32-true, or set check_ratio"):
        fit(grpo(), steps=1)
    fit(grpo(check_ratio=False), steps=1)


@pytest.mark.parametrize("filtered", [False, True])
def test_equal_rewards_move_nothing(filtered: bool) -> None:
    module = grpo(rewards=[Scripted(0.7)], filter_zero_spread=filtered)
    before = state(module)
    steps = fit(module, steps=2).steps
    assert [one["grad_norm"] for one in steps] == [0, 0] and [one["zero_spread"] for one in steps] == [1, 1]
    assert moved(before, state(module)) == set()


def test_rewards_and_gradients_that_are_no_numbers_move_nothing() -> None:
    nan = float("nan")
    scores = [[nan, 1, 1, 1, 0, 1, 0, 1], [nan, 1, 0, 1, nan, 1, 0, 1]]
    module = grpo(rewards=[Scripted(*scores)], optimization=constant(1e-3))
    states = [state(module)]

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            states.append(state(pl_module))
            if trainer.global_step == 2:
                pl_module.reward.rewards[0].scores = [[0, 1, 0, 1, 0, 1, 0, 1]]
                next(pl_module.model.ar.parameters()).register_hook(lambda gradient: gradient * nan)

    steps = fit(module, steps=3, callbacks=[Keep()]).steps
    assert [one["nan_rewards"] for one in steps] == [1 / 8, 2 / 8, 0]
    assert [one["skipped_updates"] for one in steps] == [0, 0, 1]
    assert moved(states[0], states[1]) == {"ar"}  # by the group that is known
    assert moved(states[1], states[3]) == set()


def divergence(module: GRPOModule, start: Any) -> float:
    """How far the policy is from the model that it started from, on tokens of the latter."""
    ids = start.write(CAPTION * 16, generator=torch.Generator().manual_seed(0)).ids
    with torch.no_grad():
        own, old = (score_tokens(model, CAPTION * 16, ids).log_probs for model in (module.model, start))
    return float((old - own).mean())


def test_beta_pulls_back_to_the_reference() -> None:
    """A model that was moved away from its reference comes back where rewards say nothing."""
    module = grpo(rewards=[Scripted(0.5)], beta=1.0, optimization=constant(3e-3), num_generations=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.ar.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    away = divergence(module, tiny_model())
    assert module.reference is not None and module.reference.part is not None
    kept = {name: p.clone() for name, p in module.reference.part.named_parameters()}
    steps = fit(module, steps=25, batch_size=2).steps
    assert divergence(module, tiny_model()) < 0.6 * away
    assert np.mean([one["kl"] for one in steps[-3:]]) < 0.6 * np.mean([one["kl"] for one in steps[:3]])
    for name, parameter in module.reference.part.named_parameters():
        assert torch.equal(parameter, kept[name])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_minibatches_of_any_size_pass_the_ratio_check_under_guidance_too(scale: float) -> None:
    module = grpo(token_guidance_scale=scale, minibatch_size=4, microbatch_size=3, temperature=0.8, beta=0.1)
    assert len(fit(module, steps=4).steps) == 2


class Gradients(Callback):
    """Keeps the gradients of the first update."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.kept:
            self.kept = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_microbatches_change_no_gradient(loss_type: str, scale_rewards: str) -> None:
    scores = [0, 1, 0, 1, 1, 1, 1, 1]  # the second group tells nothing and is left out
    kept = []
    for size in (None, 3):
        gradients = Gradients()
        module = grpo(
            rewards=[Scripted(scores)],
            loss_type=loss_type,
            scale_rewards=scale_rewards,
            filter_zero_spread=True,
            microbatch_size=size,
            max_grad_norm=None,
        )
        fit(module, steps=1, callbacks=[gradients])
        kept.append(gradients.kept)
    assert any(gradient.abs().max() > 0 for gradient in kept[0].values())
    for name, gradient in kept[0].items():
        torch.testing.assert_close(kept[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


class StopAt(Callback):
    """Ends a run after a step, as a kill would: the schedule is still that of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(tmp_path: Path, lora_rank: int | None) -> None:
    if lora_rank is not None:
        pytest.importorskip("peft")

    def module() -> GRPOModule:
        return grpo(num_iterations=2, minibatch_size=4, beta=0.1, optimization=Optimization(), lora_rank=lora_rank)

    whole = module()
    expected = fit(whole, steps=12).steps
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    fit(module(), steps=12, callbacks=[checkpoint, StopAt(4)], enable_checkpointing=True)
    resumed = module()
    again = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    steps = fit(resumed, steps=12, callbacks=[again], enable_checkpointing=True, ckpt_path=tmp_path / "last.ckpt").steps
    assert [one["reward"] for one in steps] == [one["reward"] for one in expected[1:]]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_adapters_train_and_are_merged_into_an_ordinary_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    module = grpo(lora_rank=2, beta=0.1, optimization=constant(1e-2))
    trains = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trains and all("lora_" in name for name in trains)
    start = tiny_model()
    ids = start.write(CAPTION).ids
    own, old = (score_tokens(model, CAPTION, ids).log_probs for model in (module.model, start))
    torch.testing.assert_close(own, old)
    steps = fit(module, steps=3, callbacks=[ExportModel(str(tmp_path / "model"))]).steps
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[-1]["kl"] > 1e-6
    assert module.model.state_dict().keys() == start.state_dict().keys()
    changed = moved(start.state_dict(), module.model.state_dict())
    assert changed == {"ar"}
    head = "ar.lm.lm_head.weight"
    assert torch.equal(module.model.state_dict()[head], start.state_dict()[head])
    again = Blip3oPipeline.from_pretrained(tmp_path / "model").model
    own, new = (score_tokens(model, CAPTION, ids).log_probs for model in (module.model, again))
    torch.testing.assert_close(own, new)
    assert (own - old).abs().max() > 1e-4


def test_a_moving_average_of_adapters_is_refused_before_anything_is_trained() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"callbacks lists EMA, .* lora_rank \(2\), .*; leave EMA out, or"):
        fit(grpo(lora_rank=2), steps=1, callbacks=[EMA(0.5)])
    assert len(fit(grpo(), steps=1, callbacks=[EMA(0.5)]).steps) == 1


def test_a_model_can_be_named_and_brings_its_settings(tiny_folder: Path) -> None:
    module = GRPOModule(str(tiny_folder), [Brightness()])
    assert module.num_inference_steps == 2 and module.generation_defaults.top_k == 0
    assert not any(part.training for part in module.modules())
    module.train()
    assert not any(part.training for part in module.modules())
    with pytest.raises(ValueError, match=r"name_or_path \(nothing\) is unknown"):
        GRPOModule("nothing", [Brightness()])


def test_validation_gives_images_and_rewards_of_held_out_prompts() -> None:
    module = grpo(validation=GenerationDefaults(num_inference_steps=1, top_k=0))
    history = fit(module, steps=1, limit_val_batches=1.0, val_check_interval=1, check_val_every_n_epoch=None)
    metrics = history.steps and module.trainer.callback_metrics
    assert 0 < float(metrics["val/reward/brightness"]) == float(metrics["val/reward"]) < 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_generations": 1}, r"num_generations \(1\) must be at least 2"),
        ({"temperature": 0.0}, r"temperature \(0\.0\) must be above 0"),
        ({"beta": -1.0}, r"beta \(-1\.0\) must be at least 0"),
        ({"epsilon": float("nan")}, r"epsilon \(nan\)"),
        ({"loss_type": "ppo"}, r"loss_type \('ppo'\) must be one of \('grpo', 'dr_grpo', 'dapo'\)"),
        ({"scale_rewards": "all"}, r"scale_rewards \('all'\)"),
        ({"minibatch_size": 0}, r"minibatch_size \(0\)"),
        ({"microbatch_size": 0}, r"microbatch_size \(0\)"),
        ({"render_batch_size": 0}, r"render_batch_size \(0\)"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm \(0\.0\) must be above 0"),
        ({"trainable": ["ar.*", "bridge.*"]}, r"matches bridge\..*, which is not of ar;"),
        ({"trainable": ["ar.lm.nothing"]}, "match no parameter"),
        ({"lora_rank": 0}, r"lora_rank \(0\)"),
        ({"lora_rank": 2, "trainable": ["ar.*"]}, "exclude each other"),
        ({"reward_weights": [1.0, 2.0]}, "one finite number for each"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        grpo(**arguments)


def test_patterns_choose_among_the_ar_models_weights() -> None:
    module = grpo(trainable=["ar.lm.model.layers.1.*"])
    before = state(module)
    fit(module, steps=1)
    after = state(module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("ar.lm.model.layers.1.") for name in changed)
