"""The models that are measured, from one that runs in a moment to the published sizes; weights are seeded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import yaml

from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.text import SPECIAL_TOKENS
from blip3o.bridge.mlp import MLPBridge
from blip3o.checkpoints import instantiate
from blip3o.diffusion.codecs import DCAE
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.sana import Sana
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.tokenizers.ta_tok import TATok

PUBLISHED = Path(__file__).parents[2] / "experiments/published/pretrain.yaml"
"""Experiment whose model has the published sizes."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the published classes.

    Attributes:
        text_size: text vocabulary, the ids below the image's.
        num_codes: image codes.
        ar: transformers config of the AR model.
        vision: config of the image tokenizer's vision tower.
        bottleneck_dim: width of a code.
        sana: config of the denoiser.
        codec: config of DC-AE.
        image_size: side in pixels of what is rendered.
        num_inference_steps: denoising steps.
        caption_words: words of a caption.
    """

    text_size: int
    num_codes: int
    ar: dict[str, Any]
    vision: dict[str, Any]
    bottleneck_dim: int
    sana: dict[str, Any]
    codec: dict[str, Any]
    image_size: int
    num_inference_steps: int = 30
    caption_words: int = 20

    def build(self) -> Blip3oNext:
        """The model, its weights drawn from torch's global generator."""
        return Blip3oNext(
            TATok(self.vision, codebook_size=self.num_codes, bottleneck_dim=self.bottleneck_dim, decoder_depth=1),
            CausalLM({"tie_word_embeddings": False, **self.ar}, _words(self.text_size)),
            MLPBridge,
            FlowHead(Sana(self.sana), DCAE(self.codec), image_size=self.image_size),
        )


def _dcae(channels: int, widths: list[int], num_convolutional: int) -> dict[str, Any]:
    """A DC-AE with one block a level, the first levels being convolutional."""
    attended = len(widths) - num_convolutional
    types = ["ResBlock"] * num_convolutional + ["EfficientViTBlock"] * attended
    scales: list[list[int]] = [[]] * num_convolutional + [[5]] * attended
    return {
        "latent_channels": channels,
        "attention_head_dim": 32,
        "encoder_block_types": types,
        "decoder_block_types": types,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [1] * len(widths),
        "decoder_layers_per_block": [1] * len(widths),
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    }


NANO = Shape(
    text_size=64,
    num_codes=48,
    ar={
        **{"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128},
    },
    vision={
        **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"patch_size": 8, "image_size": 48},
    },
    bottleneck_dim=8,
    sana={
        **{"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
        **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16},
        **{"caption_channels": 24, "sample_size": 8, "patch_size": 1},
    },
    codec=_dcae(4, [8, 16, 32], 3),
    image_size=32,
    num_inference_steps=2,
    caption_words=5,
)

MID = Shape(
    text_size=151_936,
    num_codes=65_536,
    ar={
        **{"model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096},
        **{"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    },
    vision={
        **{"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6},
        **{"patch_size": 14, "image_size": 384},  # 27 x 27 = 729 tokens
    },
    bottleneck_dim=64,
    sana={  # 60 million parameters
        **{"in_channels": 32, "out_channels": 32, "num_layers": 14, "num_attention_heads": 16},
        **{"attention_head_dim": 32, "num_cross_attention_heads": 8, "cross_attention_head_dim": 64},
        **{"cross_attention_dim": 512, "caption_channels": 768, "mlp_ratio": 2.5, "sample_size": 16},
        **{"patch_size": 1, "qk_norm": "rms_norm_across_heads"},
    },
    codec=_dcae(32, [32, 64, 128, 128, 256, 256], 3),
    image_size=512,
)

SHAPES = {"nano": NANO, "mid": MID}


@dataclass(frozen=True)
class Measured:
    """A model ready to be measured.

    Attributes:
        name: of its shape.
        model: in float32 and evaluation mode.
        num_inference_steps: denoising steps.
        captions: as many different ones as rows.
    """

    name: str
    model: Blip3oNext
    num_inference_steps: int
    captions: list[str]


@torch.no_grad()
def build(shape: str | Shape, batch_size: int, seed: int = 0, num_tokens: int | None = None) -> Measured:
    """A model of a named or given shape.

    The head's text rows are set to the mean of its image rows, so that the most likely token of all is an image token,
    as a trained model's is; both sides then decode the same ids, although one draws from the image ids alone.

    Args:
        shape: `nano`, `tiny`, `mid`, `published`, or sizes of your own.
        batch_size: how many captions.
        seed: of the weights.
        num_tokens: image tokens, a square number; the image tokenizer reads pictures of that many patches. The
            shape's own when None.

    Raises:
        ValueError: if the shape is unknown, the file with the published sizes is missing, or `num_tokens` is no square
            or can not be chosen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name, model, num_inference_steps, captions = _built(shape, batch_size, num_tokens)
        ar = model.ar
        assert isinstance(ar, CausalLM) and ar.vocabulary is not None
        if name != "tiny":  # new rows are all alike at first
            ar.head.normal_(std=0.02)
            ar.lm.get_input_embeddings().weight.normal_()
    first, last = ar.vocabulary.first_code, ar.vocabulary.size
    ar.head[:first] = ar.head[first:last].mean(0)
    ar.head[last:] = ar.head[0]
    return Measured(name, model.eval(), num_inference_steps, captions)


def _built(shape: str | Shape, batch_size: int, num_tokens: int | None) -> tuple[str, Blip3oNext, int, list[str]]:
    """Name, model, denoising steps and captions, all of which have the same number of words."""
    if isinstance(shape, Shape) or shape in SHAPES:
        sizes = shape if isinstance(shape, Shape) else SHAPES[shape]
        sizes = replace(sizes, vision=_reading(sizes.vision, num_tokens))
        name = "given" if isinstance(shape, Shape) else shape
        return name, sizes.build(), sizes.num_inference_steps, _captions(sizes.caption_words, batch_size)
    if shape == "tiny":
        if num_tokens is not None:
            raise ValueError(
                f"num_tokens ({num_tokens}) must be left out with shape 'tiny', which is trained for its own."
            )
        pipe = Blip3oPipeline.from_pretrained("tiny")
        pairs = product(("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star"))
        several = [f"a {color} {kind} left of a purple cross" for color, kind in pairs]
        captions = [several[row % len(several)] for row in range(batch_size)]
        return shape, pipe.model, pipe.defaults.num_inference_steps, captions
    if shape != "published":
        raise ValueError(f"shape ({shape!r}) must be one of {sorted([*SHAPES, 'published', 'tiny'])}.")
    if not PUBLISHED.is_file():
        raise ValueError(f"shape ('published') needs {PUBLISHED}, which is missing; run it from a checkout.")
    arguments = yaml.safe_load(PUBLISHED.read_text())["model"]["init_args"]
    config = arguments["model"]
    text = config["init_args"]["ar"]["init_args"]
    text["text_tokenizer"] = _words(text["text_size"])
    tokenizer = config["init_args"]["tokenizer"]["init_args"]
    tokenizer["vision"] = _reading(tokenizer["vision"], num_tokens)
    return shape, instantiate(config), arguments["num_inference_steps"], _captions(20, batch_size)


def _reading(vision: dict[str, Any], num_tokens: int | None) -> dict[str, Any]:
    """Config of a vision tower that reads so many patches."""
    if num_tokens is None:
        return vision
    side = isqrt(max(num_tokens, 0))
    if num_tokens < 1 or side**2 != num_tokens:
        raise ValueError(f"num_tokens ({num_tokens}) must be a square number, such as 64 or 729.")
    return {**vision, "image_size": side * vision["patch_size"]}


def _words(text_size: int) -> list[str]:
    """Words of a word tokenizer with so many ids."""
    return [f"word{index}" for index in range(text_size - len(SPECIAL_TOKENS))]


def _captions(num_words: int, batch_size: int) -> list[str]:
    """Captions of those words, each with its own beginning."""
    return [" ".join(f"word{index}" for index in (row + 1, *range(num_words - 1))) for row in range(batch_size)]
