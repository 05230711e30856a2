"""Rollouts: groups of images that the model makes of each prompt, with how likely it was to write their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip3o.ar.base import Sampling
from blip3o.model import Blip3oNext
from blip3o.pixels import to_uint8
from blip3o.training.randomness import stable_seed


@dataclass(frozen=True)
class Rollout:
    """G images of each of P prompts; row p * G + g is the generation g of prompt p.

    Attributes:
        prompts: P G prompts, each G times.
        log_probs: (P G, N) float32, of the N actions of each, under the policy that took them.
        images: (P G, H, W, 3) uint8.
    """

    prompts: list[str]
    log_probs: Tensor
    images: np.ndarray


@dataclass(frozen=True)
class TokenRollout(Rollout):
    """A rollout whose actions are the image tokens.

    Attributes:
        ids: (P G, N) codes.
    """

    ids: Tensor


def generation_generators(
    seed: int, index: Tensor, *, step: int, num_generations: int, purpose: str, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """A generator for every generation of every prompt, a pure function of (seed, prompt index, step, generation).

    Args:
        seed: of the run.
        index: (P,) int64 indices of the prompts.
        step: of training.
        num_generations: G.
        purpose: keeps independent streams apart.
        device: of the generators.

    Returns:
        P G generators, those of one prompt side by side.
    """
    return [
        torch.Generator(device).manual_seed(stable_seed(seed, prompt, f"{purpose} {step} {generation}"))
        for prompt in index.tolist()
        for generation in range(num_generations)
    ]


@torch.no_grad()
def write_and_render(
    model: Blip3oNext,
    prompts: Sequence[str],
    index: Tensor,
    *,
    num_generations: int,
    seed: int,
    step: int,
    temperature: float = 1.0,
    token_guidance_scale: float = 1.0,
    num_inference_steps: int = 30,
    guidance_scale: float = 2.0,
    render_batch_size: int = 32,
) -> TokenRollout:
    """Writes and renders `num_generations` images of every prompt.

    The AR model runs in its own precision whatever the autocast, as the updates do; its prompt is read once a group.

    Args:
        model: the composed model.
        prompts: P captions.
        index: (P,) int64, their indices.
        num_generations: G.
        seed: of the run.
        step: of training; another step draws other images of the same prompt.
        temperature: of the tokens, above 0; none is left out, so that every token keeps a probability.
        token_guidance_scale: classifier-free guidance of the AR model; 1 turns it off.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance of the diffusion head.
        render_batch_size: images that are rendered at a time.
    """
    rows = [prompt for prompt in prompts for _ in range(num_generations)]
    tokens_from, noise_from = (
        generation_generators(
            seed, index, step=step, num_generations=num_generations, purpose=purpose, device=model.device
        )
        for purpose in ("tokens", "noise")
    )
    with torch.autocast(model.device.type, enabled=False):
        tokens = model.write(
            rows,
            sampling=Sampling(temperature, top_k=0, top_p=1.0),
            generator=tokens_from,
            token_guidance_scale=token_guidance_scale,
        )
    condition, null = model.condition(tokens)
    images = []
    for some in chunks(len(rows), render_batch_size):
        latents = model.diffusion.sample(
            condition[some],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative=null[some],
            generator=noise_from[some],
        )
        images.append(to_uint8(model.diffusion.decode(latents)))
    return TokenRollout(rows, tokens.log_probs.float(), np.concatenate(images), tokens.ids)


def minibatches(num_prompts: int, num_generations: int, size: int | None) -> list[range]:
    """The generations of every minibatch; each holds as many of every prompt, so that processes can share prompts.

    Args:
        num_prompts: P.
        num_generations: G.
        size: sequences in each; all when None.

    Raises:
        ValueError: if `size` is not P times a divisor of G.
    """
    each = num_generations if size is None else size // num_prompts
    if each < 1 or num_generations % each or (size is not None and each * num_prompts != size):
        raise ValueError(
            f"minibatch_size ({size}) must be the batch of {num_prompts} prompts times a divisor of num_generations "
            f"({num_generations}), so that every prompt has as many generations in each."
        )
    return [range(first, first + each) for first in range(0, num_generations, each)]


def chunks(num_rows: int, size: int | None) -> list[slice]:
    """Slices of at most `size` of `num_rows` rows; one of all when None."""
    size = size or max(num_rows, 1)
    return [slice(first, first + size) for first in range(0, num_rows, size)]


def read_prompts(batch: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The prompts of a batch (`prompt`, or else `caption`) and their `metadata`, empty where there is none.

    Raises:
        ValueError: if it holds no prompts.
    """
    prompts = batch.get("prompt", batch.get("caption"))
    if prompts is None:
        raise ValueError(f"the batch holds {sorted(batch)}; it must hold `prompt` or `caption`.")
    return list(prompts), list(batch.get("metadata") or [{} for _ in prompts])
