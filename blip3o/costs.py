"""What a model costs: parameters, work per image, memory in training. Counted on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from blip3o.ar.cache import new_cache, state_arguments
from blip3o.ar.causal_lm import CausalLM
from blip3o.diffusion.flow import FlowHead
from blip3o.fitting import condition_length
from blip3o.model import Blip3oNext
from blip3o.structures import Conditioning


@dataclass(frozen=True)
class ImageCost:
    """Floating-point operations (a multiply and an add are two) that one image takes.

    Attributes:
        ar: decoding with a key-value cache: the prompt, every image token, and the scores of the image ids.
        denoising: all calls of the denoiser, both branches of guidance.
        decoding: latents to pixels.
    """

    ar: int
    denoising: int
    decoding: int


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training keeps between steps; activations and buffers of communication come on top.

    Attributes:
        weights: all parameters.
        gradients: of the trainable ones.
        optimizer: the optimizer's moments.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def ddp(self) -> int:
        """Bytes a GPU where every process holds everything."""
        return self.weights + self.gradients + self.optimizer

    def fsdp(self, devices: int) -> int:
        """Bytes a GPU where all three are split over `devices` (FSDP, full sharding), rounded up.

        Raises:
            ValueError: if `devices` is not positive.
        """
        if devices < 1:
            raise ValueError(f"devices ({devices}) must be at least 1.")
        return -(-self.ddp // devices)


def training_memory(
    parameters: Iterable[nn.Parameter], optimizer_numbers: int, bytes_per_number: int
) -> TrainingMemory:
    """Memory of training.

    Args:
        parameters: of the whole module.
        optimizer_numbers: how many numbers the optimizer keeps.
        bytes_per_number: of weights, gradients and the optimizer's numbers: 4 in float32, also under autocast.
    """
    counted = [(p.numel(), p.requires_grad) for p in parameters]
    weights = sum(count for count, _ in counted)
    gradients = sum(count for count, trains in counted if trains)
    return TrainingMemory(*(n * bytes_per_number for n in (weights, gradients, optimizer_numbers)))


def image_cost(
    model: Blip3oNext,
    *,
    prompt_length: int,
    num_inference_steps: int,
    guided: bool = True,
    token_guided: bool = False,
) -> ImageCost | None:
    """Work for one image; the AR model's is exact for attention, an estimate for state-space layers.

    Args:
        model: on the meta device.
        prompt_length: tokens before the image's, the scale token included.
        num_inference_steps: calls of the denoiser.
        guided: whether the diffusion head's guidance is on, which doubles every call.
        token_guided: whether the AR model's guidance is on, which doubles its work.

    Returns:
        None where a part can not be counted: an AR backbone or a head of another kind than `CausalLM` and `FlowHead`.
    """
    if not isinstance(model.ar, CausalLM) or not isinstance(model.diffusion, FlowHead):
        return None
    head, bridge = model.diffusion, model.bridge
    positions = condition_length(bridge, model.tokenizer)
    length = bridge.num_positions(prompt_length) if positions is None else positions
    if length is None:
        return None
    with torch.device("meta"):
        latents = torch.zeros(1, *head.latent_shape)
        condition = Conditioning(torch.zeros(1, length, head.cond_dim))
        call = _flops(lambda: head.denoiser(latents, torch.zeros(1), condition))
        decoding = _flops(lambda: head.codec.decode_raw(latents))
    calls = num_inference_steps * (2 if guided else 1)
    if bridge.needs_tokens:
        ar = _decoding_flops(model.ar, prompt_length, model.tokenizer.num_tokens()) * (2 if token_guided else 1)
    else:  # one pass over the prompt, and the queries where there are some
        ar = _decoding_flops(model.ar, prompt_length + (bridge.num_queries or 0), 0)
    return ImageCost(ar, calls * call, decoding)


def _decoding_flops(ar: CausalLM, prompt_length: int, num_tokens: int) -> int:
    """Work of a cached pass over prompt and image tokens.

    A pass over T positions takes a T + c T^2 operations when every position attends to all of them; decoding is causal,
    so that position t attends to t + 1.
    """
    short, long = (_pass_flops(ar, length) for length in (64, 128))
    quadratic = (long - 2 * short) / (128**2 - 2 * 64**2)
    linear = (short - quadratic * 64**2) / 64
    total = prompt_length + num_tokens
    scores = 2 * ar.hidden_size * (ar.vocabulary.num_codes if ar.vocabulary else 0) * num_tokens
    return round(linear * total + quadratic * total * (total + 1) / 2) + scores


def _pass_flops(ar: CausalLM, length: int) -> int:
    decoder = ar.lm.get_decoder()
    with torch.device("meta"):
        ids = torch.zeros(1, length, dtype=torch.long)
        # With a cache and without a mask, transformers looks at no values, of which there are none here.
        state = state_arguments(decoder, new_cache(ar.lm.config), None, None)
        return _flops(lambda: decoder(input_ids=ids, **state))


def _flops(run: Callable[[], Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
