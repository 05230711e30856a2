"""Which encoders made encoded data, and whether a model's are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from blip3o.data.shards import EncodedIndex
from blip3o.diffusion.base import Codec, DiffusionHead
from blip3o.fitting import check_takes_latents
from blip3o.model import Blip3oNext
from blip3o.part import Part

_SHOWN = 12  # digits of a fingerprint in a message


def fingerprint(part: Part) -> dict[str, Any]:
    """`config` of a part, as JSON gives it back, and `sha256` of its weights: names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return {"config": json.loads(json.dumps(part.config())), "sha256": digest.hexdigest()}


def codec_of(head: DiffusionHead) -> Codec:
    """The codec of a head that can be trained on latents.

    Raises:
        ValueError: if it needs pixels, or has none.
    """
    check_takes_latents(head)
    codec = getattr(head, "codec", None)
    if not isinstance(codec, Codec):
        raise ValueError(
            f"diffusion ({type(head).__name__}) takes latents, but its attribute `codec` is no Codec, so nobody can "
            "tell by what its images were encoded; keep the codec there."
        )
    return codec


def check_encoders(index: EncodedIndex, model: Blip3oNext) -> None:
    """Compares what made an encoded folder with a model's image tokenizer and codec.

    The tokenizer is left out where the model's bridge needs no image tokens.

    Raises:
        ValueError: naming the encoder that differs, in what, and what to do.
    """
    parts: dict[str, Part] = {"codec": codec_of(model.diffusion)}
    if model.bridge.needs_tokens:
        parts = {"tokenizer": model.tokenizer, **parts}
    for name, part in parts.items():
        found, own = index.encoders[name], fingerprint(part)
        told = _difference(found["config"], own["config"])
        if not told and found["sha256"] != own["sha256"]:
            told = f"weights with sha256 {found['sha256'][:_SHOWN]}... there, {own['sha256'][:_SHOWN]}... here"
        if told:
            raise ValueError(
                f"folder ({index.folder}) was encoded by another {name} than the model's {type(part).__name__}: {told}"
                "; encode the data again with `blip3o data encode CONFIG --output_dir ANOTHER_FOLDER`, or give the "
                f"model the {name} that it was encoded with, its weights by JointModule's `weights`."
            )
    side = model.diffusion.image_size
    if side != index.image_size:
        raise ValueError(
            f"folder ({index.folder}) was encoded from pictures of {index.image_size} pixels a side, but the diffusion "
            f"head's image_size is {side}; encode the data again at that size, or change the head's."
        )


def _difference(there: Any, here: Any, at: str = "") -> str:
    """The first place where two plain values differ, with both; empty where none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            if told := _difference(there.get(key), here.get(key), f"{at}.{key}" if at else key):
                return told.replace("init_args.", "")
        return ""
    return "" if there == here else f"{at} is {json.dumps(there)} there, {json.dumps(here)} here"
