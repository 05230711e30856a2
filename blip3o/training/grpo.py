"""Reinforcement learning of the AR model by GRPO; bridge and diffusion head render, and stay as they are."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from blip3o.ar.base import ARBackbone
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.rewards.base import Reward
from blip3o.training.base import Optimization
from blip3o.training.grpo_loss import LossType, ScaleRewards
from blip3o.training.policy import TokenScores, score_tokens
from blip3o.training.policy_module import PolicyModule
from blip3o.training.rollout import TokenRollout, write_and_render
from blip3o.training.starting import start_from


class GRPOModule(PolicyModule[TokenRollout]):
    """Group relative policy optimisation of the AR model (BLIP3o-NEXT's reinforcement learning).

    Every step draws `num_generations` images of each prompt of the batch, scores them, and updates the AR model on
    how much better than its group each was. Batches hold `index`, `prompt` (or `caption`) and perhaps `metadata`. All
    randomness is a pure function of (seed, prompt index, step, generation). The trainer's `max_steps` and the schedule
    count updates, of which a rollout makes `num_iterations` times the number of minibatches; a checkpoint's
    `every_n_train_steps` should be a multiple of that, as they are taken between rollouts.

    Args:
        model: the composed model; or a bundled name, a folder or a hub id to start from.
        rewards: what scores the images; each is logged apart.
        weights: what to start parts of a composed model from, as for `JointModule`.
        reward_weights: their weights in the sum; all 1 when None.
        optimization: optimizer and schedule.
        num_generations: images of each prompt, at least 2.
        beta: weight of the divergence (k3) from the model that the run started with; without it (None or 0) no copy
            of that model is kept.
        epsilon: how far below 1 a ratio counts.
        epsilon_high: how far above 1 a ratio counts; `epsilon` when None.
        num_iterations: how often a rollout is gone through.
        loss_type: mean over sequences (`grpo`), over tokens (`dapo`), or over a constant number of them (`dr_grpo`).
            Images of one size have as many tokens each, so the three differ only where groups are filtered.
        scale_rewards: standard deviation that divides the advantages: the `group`'s, the `batch`'s, or `none`.
        temperature: of the tokens, above 0. Rollouts leave no token out (no top-k, no top-p).
        token_guidance_scale: classifier-free guidance of the AR model in rollouts; the guided distribution is then the
            policy, which doubles the work of the AR model. 1 turns it off.
        minibatch_size: sequences of one process in an update; a minibatch holds as many generations of every prompt.
            The whole rollout when None.
        microbatch_size: sequences in one pass of the AR model, which bounds memory and changes nothing else.
        render_batch_size: images rendered at a time.
        max_grad_norm: largest norm of the gradient; None for no limit.
        filter_zero_spread: leaves groups whose rewards are all equal out of the mean and of the work.
        check_ratio: stops with a message unless the first update of a rollout has ratio 1 within 1e-4.
        trainable: patterns of parameter names in the model (`fnmatch`), all of the AR model; the whole of it when None.
        lora_rank: trains adapters of this rank instead (by peft), merged when the run ends; the base is the reference.
        num_inference_steps: denoising steps of rollouts; the model's own default when None.
        guidance_scale: guidance of the diffusion head in rollouts; the model's own default when None.
        validation: settings of validation and prediction, stored with an exported model; the model's own when None.
        seed: of all that is drawn.

    Raises:
        ValueError: if a number is out of range, a name unknown, `weights` do not fit, `trainable` reaches beyond the AR
            model, or the model writes no image tokens; when a run starts, if it also averages adapters by `EMA`.
    """

    learns = "ar"

    def __init__(
        self,
        model: str | Blip3oNext,
        rewards: list[Reward],
        weights: dict[str, str | None] | None = None,
        reward_weights: list[float] | None = None,
        optimization: Optimization = Optimization(lr=5e-6, schedule="linear", warmup_steps=0),
        num_generations: int = 16,
        beta: float | None = 0.001,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        num_iterations: int = 1,
        loss_type: LossType = "grpo",
        scale_rewards: ScaleRewards = "group",
        temperature: float = 1.0,
        token_guidance_scale: float = 1.0,
        minibatch_size: int | None = None,
        microbatch_size: int | None = None,
        render_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
        filter_zero_spread: bool = False,
        check_ratio: bool = True,
        trainable: list[str] | None = None,
        lora_rank: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        validation: GenerationDefaults | None = None,
        seed: int = 0,
    ) -> None:
        model, defaults = start_from(model, weights)
        if not model.bridge.needs_tokens:
            raise ValueError(
                f"bridge ({type(model.bridge).__name__}, reads {model.bridge.reads!r}) has the AR model write no image "
                "tokens, which are what GRPO learns to choose; use one that reads 'image_tokens' or 'token_embeds'."
            )
        super().__init__(
            model,
            rewards,
            reward_weights,
            optimization,
            num_generations=num_generations,
            beta=beta,
            epsilon=epsilon,
            epsilon_high=epsilon_high,
            num_iterations=num_iterations,
            loss_type=loss_type,
            scale_rewards=scale_rewards,
            minibatch_size=minibatch_size,
            microbatch_size=microbatch_size,
            render_batch_size=render_batch_size,
            max_grad_norm=max_grad_norm,
            filter_zero_spread=filter_zero_spread,
            check_ratio=check_ratio,
            trainable=trainable,
            lora_rank=lora_rank,
            generation_defaults=validation or defaults,
            seed=seed,
        )
        if not temperature > 0:
            raise ValueError(f"temperature ({temperature}) must be above 0: groups need images that differ.")
        self.temperature = temperature
        self.token_guidance_scale = token_guidance_scale
        self.num_inference_steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale

    def roll_out(self, prompts: list[str], index: Tensor, step: int) -> TokenRollout:
        """Writes and renders `num_generations` images of every prompt."""
        return write_and_render(
            self.model,
            prompts,
            index,
            num_generations=self.num_generations,
            seed=self.seed,
            step=step,
            temperature=self.temperature,
            token_guidance_scale=self.token_guidance_scale,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            render_batch_size=self.render_batch_size,
        )

    def score(self, rollout: TokenRollout, rows: slice | Tensor, *, reference: bool = False) -> TokenScores:
        """What the AR model, or the reference, says of the tokens of some rows."""
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        prompts: list[str] = np.array(rollout.prompts, dtype=object)[chosen].tolist()
        with self.acting(reference=reference) as ar:
            assert isinstance(ar, ARBackbone)
            return score_tokens(
                self.model,
                prompts,
                rollout.ids[rows],
                temperature=self.temperature,
                token_guidance_scale=self.token_guidance_scale,
                ar=ar,
            )
