"""What every training by rewards shares: scores, advantages, clipped updates of a policy, and what is logged."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from blip3o.model import Blip3oNext
from blip3o.part import Part
from blip3o.pipeline import GenerationDefaults, check_settings
from blip3o.pixels import to_uint8
from blip3o.rewards.base import Reward, WeightedSum
from blip3o.training.averaging import EMA
from blip3o.training.base import Optimization, TrainingModule
from blip3o.training.grpo_loss import LossType, ScaleRewards, count, group_advantages, spread, summed, token_losses
from blip3o.training.lora import merge_lora
from blip3o.training.policy import Scores
from blip3o.training.randomness import row_generators
from blip3o.training.reference import Reference, choose_trainable
from blip3o.training.rollout import Rollout, chunks, minibatches, read_prompts

RATIO_TOLERANCE = 1e-4

AnyRollout = TypeVar("AnyRollout", bound=Rollout)


class PolicyModule(TrainingModule, Generic[AnyRollout]):
    """Group relative policy optimisation of some policy; subclasses say how it draws and scores.

    The arguments are `GRPOModule`'s. Batches hold `index`, `prompt` (or `caption`) and perhaps `metadata`. The
    trainer's `max_steps` and the schedule count updates, of which a rollout makes `num_iterations` times the number of
    minibatches. Groups with a reward that is no number are left out, and a gradient that is none moves nothing.

    Attributes:
        learns: name of the part of the model that is the policy.

    Raises:
        ValueError: if a number is out of range, a name unknown, or `trainable` reaches beyond the policy; when a run
            starts, if it also averages adapters by `EMA`.
    """

    learns: ClassVar[str]

    def __init__(
        self,
        model: Blip3oNext,
        rewards: Sequence[Reward],
        reward_weights: Sequence[float] | None,
        optimization: Optimization,
        *,
        num_generations: int,
        beta: float | None,
        epsilon: float,
        epsilon_high: float | None,
        num_iterations: int,
        loss_type: LossType,
        scale_rewards: ScaleRewards,
        minibatch_size: int | None,
        microbatch_size: int | None,
        render_batch_size: int,
        max_grad_norm: float | None,
        filter_zero_spread: bool,
        check_ratio: bool,
        trainable: list[str] | None,
        lora_rank: int | None,
        generation_defaults: GenerationDefaults,
        seed: int,
    ) -> None:
        super().__init__(optimization, seed)
        self.automatic_optimization = False
        for name, choice, choices in (
            ("loss_type", loss_type, get_args(LossType)),
            ("scale_rewards", scale_rewards, get_args(ScaleRewards)),
        ):
            if choice not in choices:
                raise ValueError(f"{name} ({choice!r}) must be one of {choices}.")
        for name, value, least in (
            ("num_generations", num_generations, 2),
            ("num_iterations", num_iterations, 1),
            ("minibatch_size", 1 if minibatch_size is None else minibatch_size, 1),
            ("microbatch_size", 1 if microbatch_size is None else microbatch_size, 1),
            ("render_batch_size", render_batch_size, 1),
            ("beta", beta or 0.0, 0),
            ("epsilon", epsilon, 0),
            ("epsilon_high", epsilon_high or 0.0, 0),
        ):
            if not value >= least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm ({max_grad_norm}) must be above 0; None sets no limit.")
        check_settings(generation_defaults)
        self.model = model
        self.reward = WeightedSum(rewards, reward_weights)
        self.num_generations = num_generations
        self.beta = beta or 0.0
        self.epsilon = epsilon
        self.epsilon_high = epsilon_high
        self.num_iterations = num_iterations
        self.loss_type: LossType = loss_type
        self.scale_rewards: ScaleRewards = scale_rewards
        self.minibatch_size = minibatch_size
        self.microbatch_size = microbatch_size
        self.render_batch_size = render_batch_size
        self.max_grad_norm = max_grad_norm
        self.filter_zero_spread = filter_zero_spread
        self.check_ratio = check_ratio
        self.generation_defaults = generation_defaults
        self.lora_rank = lora_rank
        choose_trainable(model, self.learns, trainable, lora_rank, seed)
        self.reference = Reference(self.policy, lora=lora_rank is not None) if self.beta else None
        self.eval()

    @property
    def policy(self) -> Part:
        """The part that learns."""
        part = self.model.get_submodule(self.learns)
        assert isinstance(part, Part)
        return part

    @abstractmethod
    def roll_out(self, prompts: list[str], index: Tensor, step: int) -> AnyRollout:
        """Draws `num_generations` images of every prompt, whose indices are `index` (P,)."""

    @abstractmethod
    def score(self, rollout: AnyRollout, rows: slice | Tensor, *, reference: bool = False) -> Scores:
        """What the policy, or the reference (without gradient), says of the actions of some rows of a rollout."""

    @contextmanager
    def acting(self, *, reference: bool) -> Iterator[Part]:
        """Within the block, the policy, or the reference without gradient."""
        if not reference:
            yield self.policy
            return
        assert self.reference is not None, "a reference is kept where beta is above 0"
        with self.reference.of(self.policy) as part:
            yield part

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the policy that draws and the one that is updated must be the same."""
        return super().train(False)

    def setup(self, stage: str) -> None:
        """Refuses what would not work, and makes the rewards ready.

        A precision that scales the loss scales the norm of the gradient too; adapters are merged before their average
        would take their place.
        """
        averages = any(isinstance(one, EMA) for one in self.trainer.callbacks)
        if stage == "fit" and self.lora_rank is not None and averages:
            raise ValueError(
                f"callbacks lists EMA, which can not average the adapters of lora_rank ({self.lora_rank}), as they are "
                "merged when training ends; leave EMA out, or leave lora_rank out to train the weights themselves."
            )
        if self.trainer.precision == "16-mixed":
            raise ValueError("precision (16-mixed) scales the gradients; use bf16-mixed or 32-true.")
        if stage != "predict":
            self.reward.prepare()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One rollout and its updates; returns its images (P, G, H, W, 3), rewards (P, G) and prompts (P)."""
        prompts, metadata = read_prompts(batch)
        groups = minibatches(len(prompts), self.num_generations, self.minibatch_size)
        times: dict[str, float] = {}
        with _timed(times, "rollout"):
            rollout = self.roll_out(prompts, batch["index"], self.trainer.global_step)
        with _timed(times, "reward"):
            repeated = [one for one in metadata for _ in range(self.num_generations)]
            scores = self.reward.scores(rollout.images, rollout.prompts, repeated)
        rewards = torch.from_numpy(self.reward.total(scores)).view(len(prompts), self.num_generations)
        advantages, kept = self._advantages(rewards)
        with _timed(times, "update"):
            updates = self._updates(rollout, advantages.flatten().to(self.device), kept, groups)
        values = {f"train/reward/{name}": torch.from_numpy(one).nanmean() for name, one in scores.items()}
        values |= {
            "train/reward": rewards.nanmean(),
            "train/reward_std": rewards.std(1).nanmean(),
            "train/zero_spread": (spread(rewards) == 0).float().mean(),
            "train/nan_rewards": rewards.isnan().float().mean(),
            **{f"train/{name}": value for name, value in updates.items()},
            **{f"time/{name}": torch.tensor(seconds) for name, seconds in times.items()},
        }
        shown = {"train/reward", "train/kl", "train/entropy"}
        for name, number in values.items():
            self.log(name, number.float().to(self.device), prog_bar=name in shown, sync_dist=True)
        images = rollout.images.reshape(len(prompts), self.num_generations, *rollout.images.shape[1:])
        return {"images": images, "rewards": rewards.numpy(), "prompts": prompts}

    def _advantages(self, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages (P, G) float32 and the groups (P,) bool to train on: none whose rewards are not all finite."""
        finite = rewards.isfinite().all(1)
        everyone = None
        if self.scale_rewards == "batch":
            everyone = self.all_gather(rewards.to(self.device)).cpu().view(-1, rewards.shape[1])
            everyone = everyone[everyone.isfinite().all(1)]
        advantages = group_advantages(rewards, self.scale_rewards, everyone)
        kept = finite & (spread(rewards) > 0) if self.filter_zero_spread else finite
        return advantages.masked_fill(~finite[:, None], 0.0).float(), kept

    def _updates(
        self, rollout: AnyRollout, advantages: Tensor, kept: Tensor, groups: Sequence[range]
    ) -> dict[str, Tensor]:
        """All updates of a rollout; means over them of what is worth logging."""
        reference = None
        if self.beta:
            every = chunks(len(rollout.prompts), self.microbatch_size)
            reference = torch.cat([self.score(rollout, rows, reference=True).kept for rows in every])
        logged: list[dict[str, Tensor]] = []
        for iteration in range(self.num_iterations):
            for group in groups:
                own = [p * self.num_generations + g for p in torch.nonzero(kept)[:, 0].tolist() for g in group]
                rows = torch.tensor(own, dtype=torch.int64, device=self.device)
                first = iteration == 0 and group == groups[0]
                logged.append(self._update(rollout, rows, len(kept) * len(group), advantages, reference, first=first))
        names = dict.fromkeys(name for values in logged for name in values)  # in one order in all processes
        return {name: torch.stack([values[name] for values in logged if name in values]).mean() for name in names}

    def _update(
        self,
        rollout: AnyRollout,
        rows: Tensor,
        num_sequences: int,
        advantages: Tensor,
        reference: Tensor | None,
        *,
        first: bool,
    ) -> dict[str, Tensor]:
        """One optimizer step on some rows of a rollout; it moves nothing where no process has a row.

        A process without rows of its own still takes part in the sum of gradients, with one that weighs nothing.
        """
        optimizer = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        own = torch.ones_like(rollout.log_probs[rows], dtype=torch.bool)
        total, num_tokens = (
            self.trainer.strategy.reduce(value, reduce_op="mean")
            for value in (count(own, self.loss_type, num_sequences), own.sum().float())
        )
        parts = [rows[part] for part in chunks(len(rows), self.microbatch_size)] or [rows.new_zeros(1)]
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts if num_tokens > 0 else []):
            with self._synced(last=number == len(parts) - 1):
                scores = self.score(rollout, part)
                losses = token_losses(
                    scores.log_probs,
                    rollout.log_probs[part],
                    advantages[part],
                    epsilon=self.epsilon,
                    epsilon_high=self.epsilon_high,
                    beta=self.beta,
                    kl=None if reference is None else scores.divergence(reference[part]),
                )
                if first and self.check_ratio:
                    _check_ratio(losses.ratio.detach())
                mask = torch.full_like(losses.clipped, len(rows) > 0)
                loss = summed(losses.loss, mask, self.loss_type)
                self.manual_backward(loss / total)
            seen = {"ratio": losses.ratio, "clip_fraction": losses.clipped, **scores.logged()}
            seen |= {} if losses.kl is None else {"kl": losses.kl}
            # Like the loss, over the mean count of all processes: the mean over these is then that over all tokens.
            means = {name: value.detach()[mask].float().sum() / num_tokens for name, value in seen.items()}
            means["loss"] = loss.detach() / total
            sums = {name: sums.get(name, 0.0) + value for name, value in means.items()}
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.parameters() if p.requires_grad], self.max_grad_norm or torch.inf
        )
        finite = norm.isfinite()
        if not finite:
            optimizer.zero_grad(set_to_none=True)  # the step then moves nothing, but counts
        optimizer.step()
        self.lr_schedulers().step()
        return sums | {"grad_norm": norm.detach(), "skipped_updates": 1 - finite.float()}

    def _synced(self, *, last: bool) -> AbstractContextManager[Any]:
        """Within the block, gradients are summed over processes only where it is the last of an update."""
        strategy = self.trainer.strategy
        return nullcontext() if last or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def on_train_end(self) -> None:
        """Merges adapters, so that what is exported is a plain model."""
        if self.lora_rank is not None:
            merge_lora(self.policy)

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Rewards of images made for held-out prompts with the settings of validation."""
        prompts, metadata = read_prompts(batch)
        images = self.predict_step(batch, 0)
        scores = self.reward.scores(to_uint8(images), prompts, metadata)
        values = {f"{stage}/reward/{name}": one for name, one in scores.items()}
        values[f"{stage}/reward"] = self.reward.total(scores)
        for name, one in values.items():
            mean = torch.from_numpy(one).nanmean().float().to(self.device)
            self.log(name, mean, batch_size=len(prompts), sync_dist=True)
        return images

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] for the prompts of a batch."""
        settings = self.generation_defaults
        rendered = self.model.generate(
            read_prompts(batch)[0],
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            sampling=settings.sampling,
            token_guidance_scale=settings.token_guidance_scale,
            generator=row_generators(self.seed, batch["index"], "generate", self.device),
        )
        return self.model.diffusion.decode(rendered.latents)


def _check_ratio(ratio: Tensor) -> None:
    worst = (ratio - 1).abs().max().item()
    if not worst <= RATIO_TOLERANCE:
        raise ValueError(
            f"the first update's ratio is off 1 by {worst:.2g}, more than {RATIO_TOLERANCE}: the policy that drew the "
            "actions is not the one that is updated. Train in precision 32-true, or set check_ratio to false."
        )


@contextmanager
def _timed(times: dict[str, float], phase: str) -> Iterator[None]:
    """Notes the seconds of the block."""
    start = time.perf_counter()
    yield
    times[phase] = time.perf_counter() - start
