"""The policy of a diffusion head: the noisy paths that it draws for groups of images, and how likely they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from blip3o.diffusion.base import Denoiser, draw_noise
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.guidance import Guide
from blip3o.diffusion.sde import FlowMatchSDE, transition
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.pixels import to_uint8
from blip3o.structures import Conditioning
from blip3o.training.policy import Scores
from blip3o.training.rollout import Rollout, chunks, generation_generators


@dataclass(frozen=True)
class FlowRollout(Rollout):
    """A rollout whose actions are the N denoising steps of each image that are trained on.

    Attributes:
        latents: (P G, N, c, h, w) before each step.
        next_latents: (P G, N, c, h, w) after it.
        sigma: (P G, N) noise levels before it.
        next_sigma: (P G, N) noise levels after it.
        condition: of M rows: P where the images of a prompt share one, or P G.
        null: the null condition, M rows.
        origin: (P G,) int64, the row of the condition of each image.
    """

    latents: Tensor
    next_latents: Tensor
    sigma: Tensor
    next_sigma: Tensor
    condition: Conditioning
    null: Conditioning
    origin: Tensor


@dataclass(frozen=True)
class StepScores(Scores):
    """What a denoiser says of steps that were taken: the Gaussians that it would have drawn them from.

    Log-probabilities and divergences are means over the numbers of the latents.

    Attributes:
        mean: (R, N, c, h, w).
        std: (R, N).
    """

    mean: Tensor
    std: Tensor

    @property
    def kept(self) -> Tensor:
        """The means."""
        return self.mean

    def divergence(self, reference: Tensor) -> Tensor:
        """The Kullback-Leibler divergence between Gaussians of one variance, in closed form."""
        return (self.mean - reference).square().mean(dim=(2, 3, 4)) / (2 * self.std.square())


@dataclass(frozen=True)
class FlowPolicy:
    """How images are drawn from a head.

    Attributes:
        head: over flow matching.
        noise_level: of `FlowMatchSDE`, above 0.
        num_steps: denoising steps of an image, at least 2.
        num_trained: how many of those that are random, `num_steps - 1`, are kept of each image.
        guidance_scale: classifier-free guidance of the head; the guided prediction is then the policy.
    """

    head: FlowHead
    noise_level: float
    num_steps: int
    num_trained: int
    guidance_scale: float

    def draw(
        self,
        condition: Conditioning,
        null: Conditioning,
        noise_from: Sequence[torch.Generator],
        steps_from: Sequence[torch.Generator],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents (B, c, h, w) of images, and of the steps that are kept the fields of a `FlowRollout` by name.

        Args:
            condition: B rows.
            null: the null condition.
            noise_from: B generators of the noise at the start and of every step.
            steps_from: B generators, on the CPU, of the choice of steps.
        """
        guide = self._guide(condition, null)
        shape = (len(noise_from), *self.head.latent_shape)
        noise = draw_noise(shape, noise_from, condition.embeds.new_empty(0, dtype=torch.float32))
        sampler = FlowMatchSDE(noise_level=self.noise_level)
        *random, last = sampler.walk(guide, noise, self.head.objective, self.num_steps, noise_from)
        choices = [torch.randperm(len(random), generator=one)[: self.num_trained].sort().values for one in steps_from]
        chosen = torch.stack(choices).to(noise.device)
        rows = torch.arange(len(noise), device=noise.device)[:, None]
        log_probs = [step.transition.log_prob(step.next_latents) for step in random]
        return last.next_latents, {
            "log_probs": torch.stack(log_probs, dim=1)[rows, chosen],
            "latents": torch.stack([step.latents for step in random], dim=1)[rows, chosen],
            "next_latents": torch.stack([step.next_latents for step in random], dim=1)[rows, chosen],
            "sigma": torch.stack([step.sigma for step in random])[chosen],
            "next_sigma": torch.stack([step.next_sigma for step in random])[chosen],
        }

    def score(self, rollout: FlowRollout, rows: slice | Tensor, denoiser: Denoiser | None = None) -> StepScores:
        """What a denoiser, the head's own when None, says of the steps of some rows."""
        latents, after, sigma, next_sigma = (
            rearrange(tensor[rows], "r n ... -> (r n) ...")
            for tensor in (rollout.latents, rollout.next_latents, rollout.sigma, rollout.next_sigma)
        )
        num_steps = rollout.sigma.shape[1]
        origin = rollout.origin[rows].repeat_interleave(num_steps)
        with torch.autocast(latents.device.type, enabled=False):
            velocity = self._guide(rollout.condition[origin], rollout.null[origin], denoiser)(latents, sigma)
            step = transition(latents, velocity, sigma, next_sigma, self.noise_level)
            told = (step.log_prob(after), step.mean, step.std)
        log_probs, mean, std = (rearrange(tensor, "(r n) ... -> r n ...", n=num_steps) for tensor in told)
        return StepScores(log_probs, mean, std)

    def _guide(self, condition: Conditioning, null: Conditioning, denoiser: Denoiser | None = None) -> Guide:
        return self.head.guided(condition, null, self.guidance_scale, denoiser=denoiser)


@torch.no_grad()
def write_and_denoise(
    model: Blip3oNext,
    policy: FlowPolicy,
    prompts: Sequence[str],
    index: Tensor,
    *,
    num_generations: int,
    share_tokens: bool,
    writing: GenerationDefaults,
    seed: int,
    step: int,
    render_batch_size: int = 32,
) -> FlowRollout:
    """Draws `num_generations` images of every prompt.

    Everything runs in its own precision whatever the autocast, as the updates do.

    Args:
        model: the composed model.
        policy: its head's.
        prompts: P captions.
        index: (P,) int64, their indices.
        num_generations: G.
        share_tokens: whether the images of a prompt render the same image tokens and differ by noise alone.
        writing: how image tokens are sampled.
        seed: of the run.
        step: of training; another step draws other images of the same prompt.
        render_batch_size: images that are rendered at a time.
    """
    rows = [prompt for prompt in prompts for _ in range(num_generations)]
    noise_from, steps_from, tokens_from = (
        generation_generators(seed, index, step=step, num_generations=count, purpose=purpose, device=device)
        for purpose, count, device in (
            ("noise", num_generations, model.device),
            ("steps", num_generations, torch.device("cpu")),
            ("tokens", 1 if share_tokens else num_generations, model.device),
        )
    )
    origin = torch.arange(len(rows), device=model.device) // (len(rows) // len(tokens_from))
    images: list[np.ndarray] = []
    kept: list[dict[str, Tensor]] = []
    with torch.autocast(model.device.type, enabled=False):
        tokens = model.write(
            prompts if share_tokens else rows,
            sampling=writing.sampling,
            generator=tokens_from,
            token_guidance_scale=writing.token_guidance_scale,
        )
        condition, null = model.condition(tokens)
        for some in chunks(len(rows), render_batch_size):
            own = origin[some]
            latents, steps = policy.draw(condition[own], null[own], noise_from[some], steps_from[some])
            images.append(to_uint8(policy.head.decode(latents)))
            kept.append(steps)
    joined = {name: torch.cat([steps[name] for steps in kept]) for name in kept[0]}
    return FlowRollout(
        prompts=rows, images=np.concatenate(images), condition=condition, null=null, origin=origin, **joined
    )
