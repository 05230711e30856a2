"""The released procedure, from public calls of transformers and diffusers: the baseline of `blip3o bench`.

Generating: `generate()` of transformers over the whole vocabulary, a second pass over the whole sequence for its
hidden states, and at every denoising step the bridge, the denoiser with both branches of guidance, and one step of
diffusers' scheduler, then the autoencoder. Training: logits over the whole vocabulary at every position. Two faults
of the released code that change what it gives are not repeated: the second pass is told of the padding, and training
takes the states at the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from blip3o.ar.base import Sampling
from blip3o.ar.causal_lm import CausalLM
from blip3o.bench.timing import Stopwatch
from blip3o.diffusion.base import Generators
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.objectives import FlowMatching
from blip3o.model import Blip3oNext
from blip3o.prompts import Supervise
from blip3o.structures import IGNORE_INDEX, ARStates


@torch.no_grad()
def generate(
    model: Blip3oNext,
    captions: list[str],
    *,
    sampling: Sampling,
    num_inference_steps: int,
    guidance_scale: float,
    noise: Tensor,
    watch: Stopwatch,
) -> tuple[Tensor, Tensor]:
    """Image codes (B, N) and latents (B, c, h, w).

    Args:
        model: whose parts are called.
        captions: B captions.
        sampling: how tokens are drawn.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance of the diffusion head.
        noise: initial latents.
        watch: takes the time of `tokens`, `states`, `denoising` and `pixels`.
    """
    ar, head, objective = _parts(model)
    vocabulary = model.sequences.vocabulary
    prompt, mask = (t.to(model.device) for t in model.sequences.prompts(captions))
    num_tokens = model.tokenizer.num_tokens()
    with watch.stage("tokens"):
        drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        config = GenerationConfig(
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=sampling.temperature > 0,
            pad_token_id=model.sequences.pad_id,
            eos_token_id=None,
            **(drawn if sampling.temperature > 0 else {}),
        )
        sequence = ar.lm.generate(input_ids=prompt, attention_mask=mask.long(), generation_config=config)
    with watch.stage("states"):
        whole = F.pad(mask, (0, num_tokens), value=True)
        positions = (whole.long().cumsum(-1) - 1).clamp(min=0)
        output = ar.lm.get_decoder()(input_ids=sequence, attention_mask=whole.long(), position_ids=positions)
        hidden = output.last_hidden_state[:, -num_tokens - 1 :]
    with watch.stage("denoising"):
        scheduler = objective.scheduler()
        levels = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=model.device)
        latents, both = noise, torch.cat([torch.zeros_like(hidden), hidden])
        for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
            condition = model.bridge(ARStates(both))
            velocity = head.denoiser(torch.cat([latents, latents]), sigma.expand(len(both)), condition)
            unconditional, conditional = velocity.chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    with watch.stage("pixels"):
        head.decode(latents)
    return sequence[:, -num_tokens:] - vocabulary.first_code, latents


def losses(
    model: Blip3oNext,
    images: Tensor,
    token_images: Tensor,
    captions: list[str],
    *,
    supervise: Supervise,
    generator: Generators,
) -> Tensor:
    """The joint loss of a batch: mean cross-entropy of the supervised tokens plus mean flow-matching loss.

    Args:
        model: whose parts are called.
        images: (B, 3, H, W) in [-1, 1] for the codec, which runs at every call.
        token_images: (B, 3, h, w) in [-1, 1] for the image tokenizer, which does too.
        captions: B captions.
        supervise: where cross-entropy is taken; with `image` over the image ids alone, as `Blip3oNext.losses` does.
        generator: source of noise and timesteps, one a row.
    """
    ar, head, _ = _parts(model)
    vocabulary = model.sequences.vocabulary
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        codes = model.tokenizer.encode(token_images).ids
    sequences = model.sequences.training(captions, codes, supervise)
    positions = (sequences.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    output = ar.lm(
        input_ids=sequences.input_ids,
        attention_mask=sequences.attention_mask.long(),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    first = vocabulary.first_code if supervise == "image" else 0
    logits = output.logits.float()[:, :-1, first : vocabulary.size]
    labels = sequences.labels[:, 1:].masked_fill(~sequences.attention_mask[:, :-1], IGNORE_INDEX)
    labels = torch.where(labels == IGNORE_INDEX, labels, labels - first)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
    hidden = output.hidden_states[-1][sequences.condition_mask].unflatten(0, (len(captions), -1))
    flow = head.loss(images, model.bridge(ARStates(hidden)), generator=generator)
    return cross_entropy + flow.mean()


def _parts(model: Blip3oNext) -> tuple[CausalLM, FlowHead, FlowMatching]:
    """The AR model, the head and its objective, of the kinds that the released procedure has."""
    ar, head = model.ar, model.diffusion
    if isinstance(ar, CausalLM) and isinstance(head, FlowHead) and isinstance(head.objective, FlowMatching):
        return ar, head, head.objective
    raise ValueError(
        f"model ({type(ar).__name__}, {type(head).__name__}) must be a CausalLM with a FlowHead that trains flow "
        "matching: the released procedure knows no others."
    )
