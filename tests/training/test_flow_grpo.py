"""FlowGRPOModule: it learns, only the denoiser moves, ratios start at 1, the loss is the paper's, runs resume."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributions import Normal, kl_divergence

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.diffusion import FlowHead, PixelCodec, TokenDecoderHead, VPrediction
from blip3o.model import Blip3oNext
from blip3o.training.base import Optimization
from blip3o.training.callbacks import ExportModel
from blip3o.training.flow_grpo import FlowGRPOModule
from blip3o.training.flow_rollout import FlowRollout
from tests.tiny import PLAIN, perturbed, tiny_ar, tiny_dcae, tiny_dit, tiny_head, tiny_model, tiny_sana, tiny_tokenizer
from tests.training.test_grpo import Gradients, StopAt, constant, state
from tests.training.toy import Scripted, fit, flow_grpo

CAPTIONS = ["a red circle", "two blue squares"]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors of which any bit changed."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def composed(head: Any) -> Blip3oNext:
    return Blip3oNext(tokenizer=tiny_tokenizer(), ar=tiny_ar(), bridge=MLPBridge, diffusion=head, template=PLAIN).eval()


def shaken(module: FlowGRPOModule, std: float = 0.02, seed: int = 1) -> None:
    """Moves the denoiser away from where the run started."""
    perturbed(module.model.diffusion.denoiser, seed, std)  # type: ignore[arg-type]


def test_the_reward_rises_and_only_the_denoiser_moves() -> None:
    module = flow_grpo(num_generations=8, optimization=constant(5e-3))
    before = state(module)
    steps = fit(module, steps=8).steps
    print([s["reward"] for s in steps])
    assert steps[-1]["reward"] > steps[0]["reward"] + 0.1
    changed = moved(before, state(module))
    assert changed == {name for name, p in module.model.named_parameters(prefix="") if p.requires_grad}
    assert changed and all(name.startswith("diffusion.denoiser.") for name in changed)
    assert all(one["skipped_updates"] == one["nan_rewards"] == 0 for one in steps)
    assert {"reward/brightness", "ratio", "clip_fraction", "grad_norm", "zero_spread", "reward_std"} < set(steps[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 2.0, "minibatch_size": 4, "microbatch_size": 3, "beta": 0.1},
        {"share_tokens": False, "timestep_fraction": 0.5, "noise_level": 0.3, "render_batch_size": 3},
    ],
    ids=["plain", "guided", "own-tokens"],
)
def test_the_first_update_of_every_rollout_has_ratio_one_and_later_ones_have_not(arguments: dict[str, Any]) -> None:
    fit(flow_grpo(**arguments), steps=2)  # checks every ratio of the first update
    several = {"num_iterations": 3, "epsilon": 1e-6, "optimization": constant(1e-2)}
    history = fit(flow_grpo(**arguments, **several), steps=6)
    assert all(one["clip_fraction"] > 0 for one in history.steps)


def test_a_policy_other_than_the_one_that_drew_is_found_out() -> None:
    class Off(FlowGRPOModule):
        def roll_out(self, *args: Any) -> FlowRollout:
            rollout = super().roll_out(*args)
            shaken(self)
            return rollout

    given: dict[str, Any] = {"num_generations": 4, "num_train_steps": 4, "beta": None, "guidance_scale": 1.0}
    with pytest.raises(ValueError, match=r"ratio is off 1 by .*precision 32-true, or set check_ratio"):
        fit(Off(tiny_model(), [Scripted([0, 1])], **given), steps=1)
    fit(Off(tiny_model(), [Scripted([0, 1])], check_ratio=False, **given), steps=1)


@pytest.mark.parametrize("filtered", [False, True])
def test_equal_rewards_move_nothing(filtered: bool) -> None:
    module = flow_grpo(rewards=[Scripted(0.7)], filter_zero_spread=filtered)
    before = state(module)
    steps = fit(module, steps=2).steps
    assert [one["grad_norm"] for one in steps] == [0, 0] and [one["zero_spread"] for one in steps] == [1, 1]
    assert moved(before, state(module)) == set()


def written_out(
    module: FlowGRPOModule, rollout: FlowRollout, start: FlowHead, moved: FlowHead, scores: list[float]
) -> dict[str, float]:
    """Loss, divergence and share of clipped steps of a rollout of two groups in float64, one step after the other."""
    heads = [copy.deepcopy(head).double() for head in (start, moved)]
    losses, kls, clipped = [], [], []
    groups = np.array(scores).reshape(2, -1)
    advantages = ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()
    for row, gain in enumerate(advantages):
        for n in range(rollout.sigma.shape[1]):
            x, after = (tensor[row, n].double() for tensor in (rollout.latents, rollout.next_latents))
            t, s = float(rollout.sigma[row, n]), float(rollout.next_sigma[row, n])
            noise = module.paths.noise_level * (t / (1 - (s if t == 1 else t))) ** 0.5
            gaussians = []
            for head in heads:
                both = torch.tensor([t, t], dtype=torch.float64)
                own = rollout.origin[row : row + 1]
                embeds = torch.cat([rollout.null.embeds[own], rollout.condition.embeds[own]]).double()
                without, given = head.denoiser(torch.stack([x, x]), both, type(rollout.null)(embeds))
                v = without + module.paths.guidance_scale * (given - without)
                mean = x + (v + noise**2 / (2 * t) * (x + (1 - t) * v)) * (s - t)
                gaussians.append(Normal(mean, torch.full_like(mean, noise * (t - s) ** 0.5)))
            old, new = (gaussian.log_prob(after).mean() for gaussian in gaussians)
            ratio = float((new - old).exp())
            low, high = 1 - module.epsilon, 1 + (module.epsilon_high or module.epsilon)
            kls.append(float(kl_divergence(gaussians[1], gaussians[0]).mean()))
            losses.append(-min(ratio * gain, max(low, min(high, ratio)) * gain) + module.beta * kls[-1])
            clipped.append((ratio < low and gain < 0) or (ratio > high and gain > 0))
    return {"loss": float(np.mean(losses)), "kl": float(np.mean(kls)), "clip_fraction": float(np.mean(clipped))}


@pytest.mark.parametrize("epsilon_high", [None, 3e-4])
def test_the_loss_of_an_update_is_what_is_written_out_in_float64(epsilon_high: float | None) -> None:
    kept: dict[str, Any] = {}

    class Shaken(FlowGRPOModule):
        def roll_out(self, *args: Any) -> FlowRollout:
            kept["start"] = copy.deepcopy(self.model.diffusion)
            kept["rollout"] = super().roll_out(*args)
            shaken(self, std=0.003)
            kept["moved"] = copy.deepcopy(self.model.diffusion)
            return kept["rollout"]

    scores = [0.1, 0.5, 0.2, 0.9, 1.0, 0.0, 0.3, 0.3]
    given: dict[str, Any] = {"num_generations": 4, "num_train_steps": 4, "guidance_scale": 2.0, "beta": 3.0}
    given |= {"epsilon": 1e-4, "epsilon_high": epsilon_high, "check_ratio": False, "timestep_fraction": 0.7}
    module = Shaken(tiny_model(), [Scripted(scores)], **given)
    logged = fit(module, steps=1).steps[0]
    with torch.no_grad():
        expected = written_out(module, kept["rollout"], kept["start"], kept["moved"], scores)
    assert 0 < expected["clip_fraction"] < 1 and expected["kl"] > 0
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-7), name


def rolled(captions: list[str], index: list[int], *, step: int = 3, **arguments: Any) -> FlowRollout:
    return flow_grpo(**arguments).roll_out(captions, torch.tensor(index), step)


def test_a_group_shares_its_tokens_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], Blip3oNext.write

    def counted(self: Blip3oNext, captions: list[str], **arguments: Any) -> Any:
        written.append(write(self, captions, **arguments))
        return written[-1]

    monkeypatch.setattr(Blip3oNext, "write", counted)
    shared, alone = rolled(CAPTIONS, [5, 8]), rolled(CAPTIONS, [5, 8], share_tokens=False)
    assert [len(one.ids) for one in written] == [2, 8]
    assert len({tuple(ids) for ids in written[1].ids.tolist()}) == 8
    assert shared.origin.tolist() == [0] * 4 + [1] * 4 and alone.origin.tolist() == list(range(8))
    assert len(shared.condition.embeds) == 2 and len(alone.condition.embeds) == 8
    assert len({image.tobytes() for image in shared.images}) == 8


def test_a_prompt_draws_the_same_whatever_stands_beside_it() -> None:
    both, alone = rolled(CAPTIONS, [5, 8]), rolled(CAPTIONS[1:], [8])
    torch.testing.assert_close(both.latents[4:], alone.latents, rtol=0, atol=1e-5)
    assert abs(both.images[4:].astype(int) - alone.images.astype(int)).max() <= 1
    assert both.images.shape == (8, 32, 32, 3) and both.prompts == [CAPTIONS[0]] * 4 + [CAPTIONS[1]] * 4
    assert not torch.equal(alone.latents, rolled(CAPTIONS[1:], [8], step=4).latents)
    assert not torch.equal(alone.latents, rolled(CAPTIONS[1:], [9]).latents)
    assert both.log_probs.dtype == both.latents.dtype == torch.float32 and both.latents.shape == (8, 3, 48, 8, 8)


def test_a_share_of_the_steps_is_chosen_for_every_image() -> None:
    every = rolled(CAPTIONS, [5, 8], num_train_steps=7)
    some = rolled(CAPTIONS, [5, 8], num_train_steps=7, timestep_fraction=0.5)
    assert every.sigma.shape == (8, 6) and some.sigma.shape == (8, 3)
    assert np.array_equal(every.images, some.images)
    assert len({tuple(row) for row in some.sigma.tolist()}) > 1
    assert (some.sigma.diff(dim=1) < 0).all() and (some.next_sigma < some.sigma).all() and (some.next_sigma > 0).all()
    for row in range(8):
        at = [every.sigma[row].tolist().index(level) for level in some.sigma[row].tolist()]
        for name in ("latents", "next_latents", "log_probs", "next_sigma"):
            assert torch.equal(getattr(every, name)[row, at], getattr(some, name)[row]), name
    assert rolled(CAPTIONS, [5, 8], num_train_steps=7, timestep_fraction=0.01).sigma.shape == (8, 1)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_policy_scores_steps_as_they_were_drawn(scale: float) -> None:
    module = flow_grpo(guidance_scale=scale, beta=0.1)
    rollout = module.roll_out(CAPTIONS, torch.tensor([5, 8]), 0)
    rows = torch.tensor([6, 1, 3])
    scores = module.score(rollout, rows)
    torch.testing.assert_close(scores.log_probs, rollout.log_probs[rows], rtol=0, atol=1e-5)
    assert scores.log_probs.requires_grad
    shaken(module)
    reference = module.score(rollout, rows, reference=True)
    torch.testing.assert_close(reference.log_probs, rollout.log_probs[rows], rtol=0, atol=1e-5)
    assert not reference.mean.requires_grad
    assert (module.score(rollout, rows).divergence(reference.kept) > 0).all()
    assert (reference.divergence(reference.kept) == 0).all()


def test_beta_pulls_back_to_the_reference() -> None:
    module = flow_grpo(rewards=[Scripted(0.5)], beta=1.0, optimization=constant(3e-3))
    shaken(module, std=0.05)
    steps = fit(module, steps=8, batch_size=1).steps
    assert steps[-1]["kl"] < 0.5 * steps[0]["kl"]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_microbatches_change_no_gradient(loss_type: str) -> None:
    kept = []
    for size in (None, 3):
        gradients = Gradients()
        module = flow_grpo(
            rewards=[Scripted([0, 1, 0, 1, 1, 1, 1, 1])],  # the second group tells nothing and is left out
            loss_type=loss_type,
            filter_zero_spread=True,
            microbatch_size=size,
            max_grad_norm=None,
            timestep_fraction=0.5,
        )
        fit(module, steps=1, callbacks=[gradients])
        kept.append(gradients.kept)
    assert any(gradient.abs().max() > 0 for gradient in kept[0].values())
    for name, gradient in kept[0].items():
        torch.testing.assert_close(kept[1][name], gradient, rtol=1e-4, atol=1e-8, msg=name)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(tmp_path: Path, lora_rank: int | None) -> None:
    if lora_rank is not None:
        pytest.importorskip("peft")

    def module() -> FlowGRPOModule:
        several = {"num_iterations": 2, "minibatch_size": 4, "timestep_fraction": 0.5, "beta": 0.1}
        return flow_grpo(**several, optimization=Optimization(), lora_rank=lora_rank)

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
    module = flow_grpo(lora_rank=2, beta=0.1, optimization=constant(1e-2))
    trains = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trains and all(name.startswith("model.diffusion.denoiser.") and "lora_" in name for name in trains)
    start = tiny_model()
    steps = fit(module, steps=3, callbacks=[ExportModel(str(tmp_path / "model"))]).steps
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-9) and steps[-1]["kl"] > 1e-8
    assert module.model.state_dict().keys() == start.state_dict().keys()
    changed = moved(start.state_dict(), state(module))
    assert changed and all(name.startswith("diffusion.denoiser.") for name in changed)
    again = Blip3oPipeline.from_pretrained(tmp_path / "model").model
    assert not moved(state(module), again.state_dict())


def test_any_denoiser_of_a_flow_head_learns() -> None:
    model = composed(tiny_head(perturbed(tiny_sana()), tiny_dcae()))
    module = flow_grpo(model, guidance_scale=2.0)
    before = state(module)
    fit(module, steps=1)
    changed = moved(before, state(module))
    assert len(changed) > 10 and all(name.startswith("diffusion.denoiser.transformer.") for name in changed)


@pytest.mark.parametrize("share_tokens", [True, False])
def test_a_bridge_without_image_tokens_will_do(share_tokens: bool) -> None:
    """Prompts of several lengths: the condition has a mask."""
    module = flow_grpo(tiny_model(partial(MLPBridge, reads="prompt"), cond_grid=None), share_tokens=share_tokens)
    fit(module, steps=1)
    rollout = module.roll_out([CAPTIONS[0], "a red circle left of a blue square"], torch.tensor([0, 1]), 0)
    assert rollout.condition.mask is not None and not rollout.condition.mask.all()
    alone = module.roll_out(CAPTIONS[:1], torch.tensor([0]), 0)
    torch.testing.assert_close(rollout.latents[:4], alone.latents, rtol=0, atol=1e-4)


def test_ratios_are_one_under_autocast_too() -> None:
    assert fit(flow_grpo(beta=0.1), steps=1, precision="bf16-mixed").steps[0]["ratio"] == pytest.approx(1, abs=1e-6)


def test_heads_without_a_flow_are_refused() -> None:
    other = FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, objective=VPrediction())
    with pytest.raises(
        ValueError, match=r"objective \(VPrediction\) .* train the head by FlowMatching, or .* GRPOModu"
    ):
        flow_grpo(composed(other))
    with pytest.raises(ValueError, match=r"diffusion \(TokenDecoderHead\) has no denoiser .* take a FlowHead, or"):
        flow_grpo(composed(TokenDecoderHead(image_size=32)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_train_steps": 1}, r"num_train_steps \(1\) must be at least 2: the last step is not random"),
        ({"timestep_fraction": 0.0}, r"timestep_fraction \(0\.0\) must lie in \(0, 1\]"),
        ({"timestep_fraction": 1.1}, r"timestep_fraction \(1\.1\)"),
        ({"noise_level": 0.0}, r"noise_level \(0\.0\) must be above 0"),
        ({"noise_level": float("nan")}, r"noise_level \(nan\)"),
        ({"guidance_scale": -1.0}, r"guidance_scale \(-1\.0\) must be at least 0"),
        ({"num_generations": 1}, r"num_generations \(1\) must be at least 2"),
        ({"trainable": ["diffusion.*"]}, r"matches diffusion\.codec\..*, which is not of diffusion\.denoiser;"),
        ({"trainable": ["ar.*"]}, r"matches ar\..*, which is not of diffusion\.denoiser;"),
        ({"lora_rank": 2, "trainable": ["diffusion.denoiser.*"]}, "exclude each other"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments: dict[str, Any], told: str) -> None:
    model = composed(tiny_head(tiny_dit(cond_grid=None, latent_channels=4), tiny_dcae()))
    with pytest.raises(ValueError, match=told):
        flow_grpo(model, **arguments)
