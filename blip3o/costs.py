"""What a model costs: parameters, work per image, memory in training. Counted on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip3o.ar.cache import new_cache, state_arguments
from blip3o.ar.causal_lm import CausalLM
from blip3o.diffusion.flow import FlowHead
from blip3o.fitting import condition_length
from blip3o.flops import flop_counter
from blip3o.model import Blip3oNext
from blip3o.structures import Conditioning


@dataclass(frozen=True)
class ImageCost:
    """Floating-point operations (a multiply and an add are two) that one image takes.

    Attributes:
        reading: reference images to tokens and latents; 0 without any.
        ar: decoding with a key-value cache: the prompt, every image token, and the scores of the image ids.
        denoising: all calls of the denoiser, both branches of guidance.
        decoding: latents to pixels.
    """

    reading: int
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
    num_references: int = 0,
) -> ImageCost | None:
    """Work for one image; the AR model's is exact for attention, an estimate for state-space layers.

    Args:
        model: on the meta device.
        prompt_length: tokens before the image's, the scale token included, those of reference images not.
        num_inference_steps: calls of the denoiser.
        guided: whether the diffusion head's guidance is on, which doubles every call.
        token_guided: whether the AR model's guidance is on, which doubles its work.
        num_references: reference images.

    Returns:
        None where a part can not be counted: an AR backbone or a head of another kind than `CausalLM` and `FlowHead`,
        or a backbone that reads the references by a tower of its own.
    """
    ar, head, bridge, num_tokens = model.ar, model.diffusion, model.bridge, model.tokenizer.num_tokens()
    if not isinstance(ar, CausalLM) or not isinstance(head, FlowHead) or (num_references and ar.reads_images):
        return None
    positions = condition_length(bridge, model.tokenizer)
    length = bridge.num_positions(prompt_length) if positions is None else positions
    if length is None:
        return None
    channels, height, width = head.latent_shape
    if model.reference_latents is not None:
        length += num_references * height * width
    with torch.device("meta"):
        latents = torch.zeros(1, channels, height, width)
        beside = torch.cat([latents, latents], dim=3) if num_references and head.reference == "width" else latents
        condition = Conditioning(torch.zeros(1, length, head.cond_dim))
        call = _flops(lambda: head.denoiser(beside, torch.zeros(1), condition))
        decoding = _flops(lambda: head.codec.decode_raw(latents))
        reading = 0
        if num_references:
            small, large = (torch.zeros(1, 3, side, side) for side in (model.tokenizer.image_size, head.image_size))
            reading = _flops(lambda: model.tokenizer.encode(small).ids)
            if model.reference_latents is not None or head.reference is not None:
                reading += _flops(lambda: head.codec.encode_raw(large))
    prompt = prompt_length + num_references * num_tokens
    if bridge.needs_tokens:
        written = _decoding_flops(ar, prompt, num_tokens) * (2 if token_guided else 1)
    else:  # one pass over the prompt, and the queries where there are some
        written = _decoding_flops(ar, prompt + (bridge.num_queries or 0), 0)
    calls = num_inference_steps * (2 if guided else 1)
    return ImageCost(num_references * reading, written, calls * call, decoding)


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
    with torch.no_grad(), flop_counter() as counter:
        run()
    return int(counter.get_total_flops())
