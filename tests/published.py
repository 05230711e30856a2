"""Checkpoints in the released layout, written from small models of our own parts, of any sizes and switches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from blip3o.ar import CausalLM, ImageVocabulary, word_tokenizer
from blip3o.bridge import MLPBridge
from blip3o.checkpoints import export_published
from blip3o.diffusion import DCAE, FlowHead, FlowMatching
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline, GenerationDefaults
from blip3o.tokenizers import TATok
from tests.tiny import IMAGE_SIZE, WORDS, perturbed, seeded, tiny_ar_config, tiny_dcae, tiny_sana

VISION: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 7},
}
TEXT = 4 + len(WORDS)


def released_pipeline(
    *,
    seed: int = 0,
    ar: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    sana: dict[str, Any] | None = None,
    shift: float = 3.0,
    shift_factor: float = 0.0,
    table_size: int | None = None,
    text_tokenizer: str | None = None,
    reference: Any = None,
    **editing: Any,
) -> Blip3oPipeline:
    """A model of published classes and wording; what is given overrides the small sizes here, None removes."""
    config = tiny_ar_config(max_position_embeddings=256, **(ar or {}))
    config, tower = (
        {key: value for key, value in each.items() if value is not None} for each in (config, VISION | (vision or {}))
    )
    sizes = {"codebook_size": 32, "bottleneck_dim": 6, "decoder_depth": 1, **(tokenizer or {})}
    with seeded(seed):
        head = FlowHead(
            tiny_sana(**(sana or {})),
            DCAE(tiny_dcae().init_args["config"], shift_factor=shift_factor),
            image_size=IMAGE_SIZE,
            objective=FlowMatching(shift=shift),
            reference=reference,
        )
        model = Blip3oNext(
            TATok(tower, **sizes),
            CausalLM(config, text_tokenizer or list(WORDS), table_size=table_size),
            MLPBridge,
            head,
            **editing,
        )
    return Blip3oPipeline(perturbed(model, seed), GenerationDefaults(num_inference_steps=2, top_k=0))


def written(pipe: Blip3oPipeline, folder: Path, *, dtype: torch.dtype | None = None) -> Path:
    """The pipeline's model as a checkpoint of the released layout."""
    ours = pipe.save_pretrained(folder.with_name(folder.name + "-ours"), dtype=dtype)
    return export_published(ours, folder)


def text_tokenizer(folder: Path, num_scales: int, num_codes: int = 32) -> str:
    """A folder with a text tokenizer that holds the image tokens, as released ones do."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.add_tokens(ImageVocabulary(TEXT, num_codes, num_scales).names(), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return str(folder)
