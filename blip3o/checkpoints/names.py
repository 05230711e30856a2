"""Names of the released checkpoints' tensors beside ours, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

TOKENIZER = "model.vision_tower.vision_tower."

RENAMED: dict[str, dict[str, str]] = {
    "tokenizer": {
        TOKENIZER + "encoder.": "encoder.",
        TOKENIZER + "encode_task_layer.": "encode_task.",
        TOKENIZER + "bottleneck.in_linear.": "bottleneck_in.",
        TOKENIZER + "bottleneck.regularizer.embedding.": "quantizer.codebook.",
        TOKENIZER + "bottleneck.regularizer.embedding_proj.": "quantizer.codebook_proj.",
        TOKENIZER + "bottleneck.out_linear.": "bottleneck_out.",
        TOKENIZER + "decoder.vision_model.": "decoder.",
        TOKENIZER + "decode_task_layer.": "decode_task.",
        TOKENIZER + "scale_layer.": "input_",
    },
    "ar": {
        "model.embed_tokens.": "lm.model.embed_tokens.",
        "model.layers.": "lm.model.layers.",
        "model.norm.": "lm.model.norm.",
        "lm_head.": "lm.lm_head.",
    },
    "bridge": {"model.diffusion_connector.": "layers."},
    "diffusion": {
        "model.sana.": "denoiser.transformer.",
        "model.sana_vae.": "codec.vae.",
        "model.und_image_vae_as_noise_connector.0.": "reference_proj.",
    },
    "reference_features": {"model.tar_siglip_features_connector.": "layers."},
    "reference_latents": {"model.und_image_vae_connector.": "layers."},
}
"""For every part, the start of a released name and what it becomes in the part's own state."""


def split_by_part(state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """A released checkpoint's tensors under our names, by part; and the names that belong to no part."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in RENAMED}
    strangers = []
    for key, tensor in state.items():
        renamed = to_ours(key)
        if renamed is None:
            strangers.append(key)
        else:
            parts[renamed[0]][renamed[1]] = tensor
    return parts, sorted(strangers)


def to_ours(key: str) -> tuple[str, str] | None:
    """Part and our name of a released tensor; None where it belongs to no part."""
    for part, starts in RENAMED.items():
        for theirs, ours in starts.items():
            if key.startswith(theirs):
                return part, ours + key.removeprefix(theirs)
    return None


def told_of(part: str) -> Callable[[str], str]:
    """How to say a tensor of a part to whoever has a released checkpoint: by its released name."""
    return lambda key: to_theirs(part, key) or key


def to_theirs(part: str, key: str) -> str | None:
    """The released name of one of our tensors; None where the released layout has none."""
    for theirs, ours in RENAMED[part].items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return None
