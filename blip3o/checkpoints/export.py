"""Our model folders in the layout that the released code reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from blip3o.ar.text import load_text_tokenizer
from blip3o.ar.vocabulary import ImageVocabulary
from blip3o.checkpoints.folder import CONFIG_NAME, TEXT_TOKENIZER, replacing
from blip3o.checkpoints.names import RENAMED, to_theirs
from blip3o.checkpoints.tensors import read_file
from blip3o.diffusion.flow import PUBLISHED_SHIFT
from blip3o.diffusion.objectives import FlowMatching
from blip3o.loading import resolve_folder
from blip3o.prompts import PromptTemplate

CLASSES = {
    "tokenizer": "blip3o.tokenizers.ta_tok.TATok",
    "ar": "blip3o.ar.causal_lm.CausalLM",
    "bridge": "blip3o.bridge.mlp.MLPBridge",
    "diffusion": "blip3o.diffusion.flow.FlowHead",
    "reference_features": "blip3o.bridge.mlp.MLPBridge",
    "reference_latents": "blip3o.bridge.mlp.MLPBridge",
}
"""What each part must be: the released code knows no other."""

_FACTORS = ("codec.scaling_factor", "codec.shift_factor")


def export_published(model: str | Path, out: str | Path) -> Path:
    """Writes a model folder as a checkpoint of the released code: weights as they are stored, bit for bit.

    The folder holds config.json, model.safetensors and the text tokenizer, and what the released code fetches from a
    hub: `diffusion/` with the configs of transformer, vae and scheduler, and `vision/` with that of the tower.

    Args:
        model: folder that `save_pretrained` or `blip3o convert` wrote, or a hub id of one.
        out: folder to write; it must be new or empty.

    Raises:
        ValueError: if a part is none of the published classes, the wording or the codec's normalisation is another, or
            `out` holds anything.
    """
    source, out = resolve_folder(model, "model"), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out ({out}) exists and is no empty folder; name another.")
    parts = _parts(source)
    head = parts["diffusion"]["init_args"]
    tensors: dict[str, Tensor] = {}
    factors: dict[str, float] = {}
    for part in parts:
        for key, tensor in read_file(source / f"{part}.safetensors").items():
            renamed = to_theirs(part, key)
            if renamed is not None:
                tensors[renamed] = tensor
            elif key in _FACTORS:
                factors[key] = float(tensor)
            else:
                raise ValueError(f"{part} holds {key}, for which the released layout has no name.")
    if factors.get("codec.shift_factor", 0.0) != 0.0:
        raise ValueError(f"the codec shifts its latents by {factors['codec.shift_factor']}; the released code can not.")
    with replacing(out) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        vocabulary = _write_text_tokenizer(source, parts, new)
        config = _config(parts, vocabulary) | {"diffusion_name_or_path": str(out / "diffusion")}
        _write_json(new / "config.json", config)
        vae = head["codec"]["init_args"]["config"] | {"scaling_factor": factors["codec.scaling_factor"]}
        _write_json(new / "diffusion/transformer/config.json", head["denoiser"]["init_args"]["config"])
        _write_json(new / "diffusion/vae/config.json", vae)
        shift = head["objective"]["init_args"]["shift"]
        _write_json(new / "diffusion/scheduler/scheduler_config.json", {"num_train_timesteps": 1000, "shift": shift})
        vision = {"model_type": "siglip_vision_model", **parts["tokenizer"]["init_args"]["vision"]}
        _write_json(new / "vision/config.json", {"model_type": "siglip", "vision_config": vision})
    return out


def _parts(source: Path) -> dict[str, dict[str, Any]]:
    """The configuration of every part, all of published classes."""
    path = source / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"model ({source}) has no {CONFIG_NAME}; pass a folder that save_pretrained wrote.")
    arguments = yaml.safe_load(path.read_text())["model"]["init_args"]
    parts = {name: arguments[name] for name in RENAMED if arguments.get(name)}
    for name, config in parts.items():
        if config["class_path"] != CLASSES[name]:
            raise ValueError(f"{name} is a {config['class_path']}; the released code knows {CLASSES[name]} only.")
    reads = parts["bridge"].get("init_args", {})
    if reads.get("reads", "image_tokens") != "image_tokens" or reads.get("ar_layers"):
        raise ValueError(
            f"bridge ({reads}) must read the last hidden states at image_tokens, as the released code does."
        )
    head = parts["diffusion"]["init_args"]
    head["objective"] = head["objective"] or FlowMatching(shift=PUBLISHED_SHIFT).config()
    for name, cls in (
        ("denoiser", "blip3o.diffusion.sana.Sana"),
        ("codec", "blip3o.diffusion.codecs.DCAE"),
        ("objective", "blip3o.diffusion.objectives.FlowMatching"),
    ):
        if head[name]["class_path"] != cls:
            raise ValueError(f"the head's {name} is a {head[name]['class_path']}; the released code knows {cls} only.")
    if PromptTemplate(**arguments["template"]) != PromptTemplate():
        raise ValueError(f"template ({arguments['template']}) is not the released wording {asdict(PromptTemplate())}.")
    return parts


def _write_text_tokenizer(source: Path, parts: dict[str, dict[str, Any]], new: Path) -> ImageVocabulary:
    """Writes the text tokenizer, the image tokens added where it lacks them; returns the ids."""
    text_tokenizer = load_text_tokenizer(str(source / TEXT_TOKENIZER))
    text_size = parts["ar"]["init_args"].get("text_size") or len(text_tokenizer)
    vocabulary = ImageVocabulary(text_size, parts["tokenizer"]["init_args"]["codebook_size"])
    if len(text_tokenizer) == text_size:
        text_tokenizer.add_tokens(vocabulary.names(), special_tokens=True)
    text_tokenizer.save_pretrained(new)
    return vocabulary


def _config(parts: dict[str, dict[str, Any]], vocabulary: ImageVocabulary) -> dict[str, Any]:
    """config.json as the released code reads it."""
    head = parts["diffusion"]["init_args"]
    tokenizer = parts["tokenizer"]["init_args"]
    noise_space = head.get("reference") is not None
    return {
        **parts["ar"]["init_args"]["config"],
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        "vocab_size": vocabulary.size,
        "image_start_tag_id": vocabulary.image_start,
        "image_end_tag_id": vocabulary.image_end,
        "scale_start_token_id": vocabulary.scale(1),
        "scale_end_token_id": vocabulary.scale(vocabulary.num_scales),
        "image_start_token_id": vocabulary.first_code,
        "image_end_token_id": vocabulary.size - 1,
        "num_scale_tokens": vocabulary.num_scales,
        "num_image_tokens": vocabulary.num_codes,
        "num_new_tokens": vocabulary.num_codes,
        "mm_vision_tower": "ta_tok",
        "mm_vision_select_layer": tokenizer["select_layer"],
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_hidden_size": tokenizer["vision"]["hidden_size"],
        "use_und_image_vae": noise_space or "reference_latents" in parts,
        "use_und_image_vae_as_noise": noise_space,
        "only_use_und_image_vae_as_noise": noise_space and "reference_latents" not in parts,
        "use_tar_siglip_features": "reference_features" in parts,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
