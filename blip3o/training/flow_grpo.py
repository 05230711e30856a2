"""Reinforcement learning of the diffusion head by Flow-GRPO; what writes its condition stays as it is."""

from __future__ import annotations

import math

from torch import Tensor

from blip3o.diffusion.base import Denoiser
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.objectives import FlowMatching
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.rewards.base import Reward
from blip3o.training.base import Optimization
from blip3o.training.flow_rollout import FlowPolicy, FlowRollout, StepScores, write_and_denoise
from blip3o.training.grpo_loss import LossType, ScaleRewards
from blip3o.training.policy_module import PolicyModule
from blip3o.training.starting import start_from


class FlowGRPOModule(PolicyModule[FlowRollout]):
    """Group relative policy optimisation of the denoiser (Flow-GRPO, arXiv 2505.05470).

    As `GRPOModule`, but the actions are denoising steps: images are drawn by `FlowMatchSDE`, whose steps have a
    probability, and the denoiser learns from how much better than its group each image was. Tokenizer, AR model,
    bridge and codec stay as they are. Probabilities and divergences are means over the numbers of the latents, as the
    released code takes them, so ratios stay far closer to 1 than those of tokens, and `epsilon` is small.

    Args:
        model: the composed model, whose head is a `FlowHead` trained by flow matching; or a bundled name, a folder or
            a hub id to start from.
        rewards: what scores the images; each is logged apart.
        weights: what to start parts of a composed model from, as for `JointModule`.
        reward_weights: their weights in the sum; all 1 when None.
        optimization: optimizer and schedule.
        num_generations: images of each prompt, at least 2.
        num_train_steps: denoising steps of rollouts, at least 2; fewer than validation takes save most of the time.
            All but the last are random, and can be trained on.
        timestep_fraction: share of the random steps of each image that is trained on, chosen at random, in (0, 1].
        noise_level: of the sampler in rollouts, above 0.
        share_tokens: whether the images of a prompt render the same image tokens, written once, and differ by noise
            alone; otherwise each has its own. They are sampled as in validation.
        beta: weight of the divergence from the denoiser that the run started with; without it (None or 0) no copy of
            that is kept.
        epsilon: how far below 1 a ratio counts.
        epsilon_high: how far above 1 a ratio counts; `epsilon` when None.
        num_iterations: how often a rollout is gone through.
        loss_type: mean over images (`grpo`), over steps (`dapo`), or over a constant number of them (`dr_grpo`); they
            differ only where groups are filtered.
        scale_rewards: standard deviation that divides the advantages: the `group`'s, the `batch`'s, or `none`.
        guidance_scale: classifier-free guidance of the head in rollouts; the guided prediction is then the policy,
            which doubles its work. 1 turns it off; the model's own default when None.
        minibatch_size: images of one process in an update; a minibatch holds as many generations of every prompt. The
            whole rollout when None.
        microbatch_size: images in one pass of the denoiser, each with all its steps that are trained on, which bounds
            memory and changes nothing else.
        render_batch_size: images drawn at a time.
        max_grad_norm: largest norm of the gradient; None for no limit.
        filter_zero_spread: leaves groups whose rewards are all equal out of the mean and of the work.
        check_ratio: stops with a message unless the first update of a rollout has ratio 1 within 1e-4.
        trainable: patterns of parameter names in the model (`fnmatch`), all of the denoiser; the whole of it when None.
        lora_rank: trains adapters of this rank instead (by peft), merged when the run ends; the base is the reference.
        validation: settings of validation and prediction, stored with an exported model; the model's own when None.
        seed: of all that is drawn.

    Raises:
        ValueError: if a number is out of range, a name unknown, `weights` do not fit, `trainable` reaches beyond the
            denoiser, or the head does not train by flow matching; when a run starts, if it also averages adapters by
            `EMA`.
    """

    learns = "diffusion.denoiser"

    def __init__(
        self,
        model: str | Blip3oNext,
        rewards: list[Reward],
        weights: dict[str, str | None] | None = None,
        reward_weights: list[float] | None = None,
        optimization: Optimization = Optimization(lr=1e-5, schedule="linear", warmup_steps=0),
        num_generations: int = 24,
        num_train_steps: int = 10,
        timestep_fraction: float = 1.0,
        noise_level: float = 0.7,
        share_tokens: bool = True,
        beta: float | None = 0.04,
        epsilon: float = 1e-4,
        epsilon_high: float | None = None,
        num_iterations: int = 1,
        loss_type: LossType = "grpo",
        scale_rewards: ScaleRewards = "group",
        guidance_scale: float | None = None,
        minibatch_size: int | None = None,
        microbatch_size: int | None = None,
        render_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
        filter_zero_spread: bool = False,
        check_ratio: bool = True,
        trainable: list[str] | None = None,
        lora_rank: int | None = None,
        validation: GenerationDefaults | None = None,
        seed: int = 0,
    ) -> None:
        model, defaults = start_from(model, weights)
        head = _flow_head(model)
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
        if num_train_steps < 2:
            raise ValueError(f"num_train_steps ({num_train_steps}) must be at least 2: the last step is not random.")
        if not 0 < timestep_fraction <= 1:
            raise ValueError(f"timestep_fraction ({timestep_fraction}) must lie in (0, 1]; 1 trains on all steps.")
        if not 0 < noise_level < math.inf:
            raise ValueError(f"noise_level ({noise_level}) must be above 0: steps need a probability; take 0.7.")
        guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        if not guidance_scale >= 0:
            raise ValueError(f"guidance_scale ({guidance_scale}) must be at least 0; 1 turns guidance off.")
        self.share_tokens = share_tokens
        num_trained = max(1, round(timestep_fraction * (num_train_steps - 1)))
        self.paths = FlowPolicy(head, noise_level, num_train_steps, num_trained, guidance_scale)

    def roll_out(self, prompts: list[str], index: Tensor, step: int) -> FlowRollout:
        """Writes tokens, and draws `num_generations` images of every prompt."""
        return write_and_denoise(
            self.model,
            self.paths,
            prompts,
            index,
            num_generations=self.num_generations,
            share_tokens=self.share_tokens,
            writing=self.generation_defaults,
            seed=self.seed,
            step=step,
            render_batch_size=self.render_batch_size,
        )

    def score(self, rollout: FlowRollout, rows: slice | Tensor, *, reference: bool = False) -> StepScores:
        """What the denoiser, or the reference, says of the steps of some rows."""
        with self.acting(reference=reference) as denoiser:
            assert isinstance(denoiser, Denoiser)
            return self.paths.score(rollout, rows, denoiser)


def _flow_head(model: Blip3oNext) -> FlowHead:
    """The head of a model.

    Raises:
        ValueError: if it has no flow.
    """
    head, other = model.diffusion, "train the AR model by GRPOModule"
    if not isinstance(head, FlowHead):
        raise ValueError(
            f"diffusion ({type(head).__name__}) has no denoiser that draws images from noise; take a FlowHead, or "
            f"{other}."
        )
    if not isinstance(head.objective, FlowMatching):
        raise ValueError(
            f"objective ({type(head.objective).__name__}) is not what Flow-GRPO draws from; train the head by "
            f"FlowMatching, or {other}."
        )
    return head
