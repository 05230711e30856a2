"""Tiny parts and a tiny model on 32-pixel images, for any test that needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from blip3o.ar import CausalLM
from blip3o.bridge import Bridge, MLPBridge
from blip3o.diffusion import DCAE, Codec, Denoiser, DiT, FlowHead, FlowMatching, KLCodec, PixelCodec, Sana
from blip3o.model import Blip3oNext
from blip3o.part import Part
from blip3o.prompts import PromptTemplate
from blip3o.shapes import SHAPES_MINI, render, sample_scene
from blip3o.tokenizers import FSQ, ConvTokenizer, Quantizer

IMAGE_SIZE = 32
COND_DIM = 24
HIDDEN_SIZE = 32
# Every word of a shapes-mini caption.
WORDS = (
    *("a", "and", "of", "left", "right", "above", "below", "two", "red", "green", "blue"),
    *("circle", "square", "triangle", "circles", "squares", "triangles"),
)
PLAIN = PromptTemplate(generate="{caption}", system=None, chat=False)
PLAIN_EDITS = PromptTemplate(
    "{caption}", edit="{instruction}", before_references="", after_references="", system=None, chat=False
)

Module = TypeVar("Module", bound=nn.Module)
AnyPart = TypeVar("AnyPart", bound=Part)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Torch's global generator starts at `seed` inside, and is as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def perturbed(module: Module, seed: int = 0, std: float = 0.1) -> Module:
    """Adds normal numbers to every parameter, so that none is left at zero and no two rows of a table are equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return module


def generators(count: int, first_seed: int = 0) -> list[torch.Generator]:
    """One generator a row, seeded `first_seed`, `first_seed + 1`, ..."""
    return [torch.Generator().manual_seed(first_seed + index) for index in range(count)]


def rebuilt(part: AnyPart) -> AnyPart:
    """A new part from `part.config()`, the way a saved model is read; its weights are fresh."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(type(part), "part")
    return parser.instantiate_classes(parser.parse_object({"part": part.config()})).part


def tiny_images(count: int = 2, seed: int = 0) -> Tensor:
    """Rendered shapes-mini scenes: (count, 3, 32, 32) in [-1, 1]."""
    scenes = [sample_scene(SHAPES_MINI, seed, index) for index in range(count)]
    pixels = torch.stack([torch.from_numpy(render(scene, SHAPES_MINI)) for scene in scenes])
    return (pixels.float() / 127.5 - 1).movedim(-1, 1)


def tiny_tokenizer(quantizer: Quantizer | None = None, *, seed: int = 0, **arguments: Any) -> ConvTokenizer:
    """16 tokens an image; 64 codes unless another quantizer is given."""
    values = {"image_size": IMAGE_SIZE, "width": 16, "encoder_depth": 1, "decoder_depth": 1, **arguments}
    with seeded(seed):
        return ConvTokenizer(quantizer or FSQ([4, 4, 4]), **values)


def tiny_ar_config(model_type: str = "qwen3", **overrides: Any) -> dict[str, Any]:
    """Arguments of a two-layer transformers config."""
    values: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 96,
        "tie_word_embeddings": False,
    }
    return values | overrides


def tiny_ar(model_type: str = "qwen3", *, seed: int = 0, **overrides: Any) -> CausalLM:
    """A causal LM over `WORDS`, its vocabulary not extended yet."""
    with seeded(seed):
        return CausalLM(tiny_ar_config(model_type, **overrides), list(WORDS))


def tiny_dit(*, seed: int = 0, **arguments: Any) -> DiT:
    """A DiT on 48-channel 8x8 latents; its zero-initialised layers are perturbed."""
    values = {"latent_channels": 48, "latent_size": 8, "cond_dim": COND_DIM, "width": 32, "depth": 1}
    with seeded(seed):
        return perturbed(DiT(**{**values, "num_heads": 2, **arguments}), seed)


def tiny_sana(*, seed: int = 0, **config: Any) -> Sana:
    """SANA on 4-channel 8x8 latents."""
    values: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": COND_DIM,
        "sample_size": 8,
        "patch_size": 1,
    }
    with seeded(seed):
        return Sana(values | config)


def tiny_dcae(*, seed: int = 0) -> DCAE:
    """DC-AE with 4 channels and 4 pixels a position."""
    config = {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": [8, 8, 16],
        "decoder_block_out_channels": [8, 8, 16],
        "encoder_layers_per_block": [0, 1, 1],
        "decoder_layers_per_block": [0, 1, 1],
        "encoder_qkv_multiscales": [[], [], []],
        "decoder_qkv_multiscales": [[], [], []],
        "downsample_block_type": "pixel_unshuffle",
        "upsample_block_type": "pixel_shuffle",
        "scaling_factor": 0.5,
    }
    with seeded(seed):
        return DCAE(config)


def tiny_kl(*, seed: int = 0) -> KLCodec:
    """A KL autoencoder with 4 channels and 2 pixels a position."""
    config = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
        "shift_factor": 0.1,
    }
    with seeded(seed):
        return KLCodec(config)


def tiny_head(denoiser: Denoiser | None = None, codec: Codec | None = None, *, shift: float = 3.0) -> FlowHead:
    """Flow matching on 32-pixel images; a DiT on patches of 4 pixels unless others are given."""
    return FlowHead(
        denoiser or tiny_dit(),
        codec or PixelCodec(patch_size=4),
        image_size=IMAGE_SIZE,
        objective=FlowMatching(shift=shift),
    )


def tiny_model(
    bridge: Callable[[int, int], Bridge] = MLPBridge, *, seed: int = 0, cond_grid: int | None = 4
) -> Blip3oNext:
    """The whole composition: 16 tokens of 64 codes, a Qwen3, a perceptron, a DiT on pixels; about 100,000 parameters.

    It is untrained, but perturbed, so that every output depends on every input. A bridge that gives fewer than 16
    positions, or a number that varies, needs `cond_grid=None`.
    """
    with seeded(seed):
        model = Blip3oNext(
            tokenizer=tiny_tokenizer(seed=seed),
            ar=tiny_ar(seed=seed),
            bridge=bridge,
            diffusion=tiny_head(tiny_dit(seed=seed, cond_grid=cond_grid)),
            template=PLAIN,
        )
    perturbed(model.ar, seed)
    return model.eval()
