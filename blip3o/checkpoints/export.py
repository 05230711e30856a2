"""Our model folders in the layout that the released code reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from blip3o.ar.text import load_text_tokenizer, save_text_tokenizer
from blip3o.ar.vocabulary import ImageVocabulary, held_layout
from blip3o.checkpoints.configs import vocabulary_config
from blip3o.checkpoints.folder import (
    CONFIG_NAME,
    MODEL_FILES,
    TEXT_TOKENIZER,
    build_model,
    check_writable,
    read_config,
    replacing,
)
from blip3o.checkpoints.names import RENAMED, to_theirs
from blip3o.checkpoints.tensors import misfits, read_file
from blip3o.diffusion.flow import PUBLISHED_SHIFT
from blip3o.diffusion.objectives import FlowMatching
from blip3o.loading import resolve_folder
from blip3o.prompts import PromptTemplate

IDLE = "blip3o.bridge.idle.IdleBridge"
CLASSES = {
    "tokenizer": ("blip3o.tokenizers.ta_tok.TATok",),
    "ar": ("blip3o.ar.causal_lm.CausalLM",),
    "bridge": ("blip3o.bridge.mlp.MLPBridge",),
    "diffusion": ("blip3o.diffusion.flow.FlowHead",),
    "reference_features": ("blip3o.bridge.mlp.MLPBridge",),
    "reference_latents": ("blip3o.bridge.mlp.MLPBridge", IDLE),
}
"""What each part must be: the released code knows no other."""

_INNER = {
    "denoiser": ("blip3o.diffusion.sana.Sana",),
    "codec": ("blip3o.diffusion.codecs.DCAE",),
    "objective": ("blip3o.diffusion.objectives.FlowMatching",),
}
_FACTORS = {"codec.scaling_factor": "scaling_factor", "codec.shift_factor": "shift_factor"}
"""What our head stores as tensors and the released layout tells in the codec's config."""


def export_published(model: str | Path, out: str | Path) -> Path:
    """Writes a model folder as a checkpoint of the released code: weights as they are stored, bit for bit.

    The folder holds config.json, generation_config.json, model.safetensors and the text tokenizer, and what the
    released code fetches from a hub: `diffusion/` with transformer, vae and scheduler, and `vision/` with the config of
    the tower. A tied head is stored once, as input embeddings. SANA's and DC-AE's weights stand twice, in
    model.safetensors and, for diffusers, under `diffusion/` (about 1.9 billion parameters at the published size).

    Args:
        model: folder that `save_pretrained` or `blip3o convert` wrote, or a hub id of one.
        out: folder to write; it must be new or empty.

    Raises:
        ValueError: if the folder is damaged, a part is none of the published classes, the wording is another, or `out`
            holds anything, lies in the model folder or can not be made; nothing has been written then.
    """
    source, out = resolve_folder(model, "model", wanted=MODEL_FILES), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out ({out}) exists and is no empty folder; name another.")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out ({out}) lies in the model folder ({source}); name a folder outside of it.")
    check_writable(out, "out")
    parts = _parts(source)
    head, language = parts["diffusion"]["init_args"], _language(parts, source / CONFIG_NAME)
    tensors: dict[str, Tensor] = {}
    factors: dict[str, float] = {}
    for part, state in _states(source).items():
        for key, tensor in state.items():
            if part == "diffusion" and key in _FACTORS:
                factors[_FACTORS[key]] = _as_told(tensor, head["codec"]["init_args"]["config"].get(_FACTORS[key]))
                continue
            if (renamed := to_theirs(part, key)) is None:
                raise ValueError(f"{part} holds {key}, for which the released layout has no name.")
            tensors[renamed] = tensor
    if language["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    factors = {name: value for name, value in factors.items() if name == "scaling_factor" or value != 0.0}
    with replacing(out) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        text_tokenizer, vocabulary = _with_image_tokens(source, parts)
        save_text_tokenizer(text_tokenizer, new)
        _write_json(new / "generation_config.json", _generation(language, text_tokenizer))
        folder = new / "diffusion"
        config = language | _config(parts, vocabulary) | _notes(language, text_tokenizer, tensors)
        _write_json(new / "config.json", config | {"diffusion_name_or_path": str(out.absolute() / "diffusion")})
        denoiser, vae = (head[name]["init_args"]["config"] for name in ("denoiser", "codec"))
        _write_diffusers(folder / "transformer", "SanaTransformer2DModel", denoiser, tensors, "model.sana.")
        _write_diffusers(folder / "vae", "AutoencoderDC", vae | factors, tensors, "model.sana_vae.")
        scheduler = {"num_train_timesteps": 1000, "shift": head["objective"]["init_args"]["shift"]}
        scheduler["_class_name"] = "FlowMatchEulerDiscreteScheduler"
        _write_json(folder / "scheduler/scheduler_config.json", scheduler)
        vision = {"model_type": "siglip_vision_model", **parts["tokenizer"]["init_args"]["vision"]}
        whole = vision["model_type"].removesuffix("_vision_model")
        _write_json(new / "vision/config.json", {"model_type": whole, "vision_config": vision})
    return out


def _states(source: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of every part, once it is sure that they are those of the model that the folder describes."""
    with torch.device("meta"):
        model, _ = build_model(source)
    states = {}
    for name, part in model.parts().items():
        states[name] = read_file(source / f"{name}.safetensors")
        if told := misfits(part, states[name]):
            raise ValueError(f"{source / f'{name}.safetensors'} does not fit {type(part).__name__}: {told}.")
    return states


def _as_told(stored: Tensor, told: float | None) -> float:
    """A stored number as the config tells it, where that is the same in the precision it is stored in."""
    return told if told is not None and torch.tensor(told, dtype=stored.dtype) == stored else float(stored)


def _parts(source: Path) -> dict[str, dict[str, Any]]:
    """The configuration of every part, all of published classes."""
    try:
        return _checked_parts(source)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{source / CONFIG_NAME} is no model configuration ({error!r}); save it again.") from error


def _checked_parts(source: Path) -> dict[str, dict[str, Any]]:
    path = source / CONFIG_NAME
    arguments = read_config(source)[0]["init_args"]
    parts = {name: arguments[name] for name in RENAMED if arguments.get(name)}
    for name in CLASSES:
        if name not in parts and not name.startswith("reference"):
            raise ValueError(f"{path} describes no {name}; the released code needs one.")
    head = parts["diffusion"]["init_args"]
    head["objective"] = head["objective"] or FlowMatching(shift=PUBLISHED_SHIFT).config()
    inner = {f"the head's {name}": head[name]["class_path"] for name in _INNER if name in head}
    known = CLASSES | {f"the head's {name}": classes for name, classes in _INNER.items()}
    for name, cls in ({name: config["class_path"] for name, config in parts.items()} | inner).items():
        if cls not in known[name]:
            raise ValueError(f"{path}: {name} is a {cls}; the released code knows {known[name][0]} only.")
    reads = parts["bridge"].get("init_args") or {}
    if reads.get("reads", "image_tokens") != "image_tokens" or reads.get("ar_layers"):
        raise ValueError(
            f"{path}: bridge ({reads}) must read the last hidden states at image_tokens, as the released code does."
        )
    if (template := PromptTemplate(**arguments["template"])) != PromptTemplate():
        raise ValueError(f"{path}: template ({asdict(template)}) is not the released {asdict(PromptTemplate())}.")
    return parts


def _with_image_tokens(
    source: Path, parts: dict[str, dict[str, Any]]
) -> tuple[PreTrainedTokenizerBase, ImageVocabulary]:
    """The text tokenizer, the image tokens added where it lacks them, and the ids."""
    text_tokenizer = load_text_tokenizer(str(source / TEXT_TOKENIZER))
    held = held_layout(text_tokenizer)
    text_size = parts["ar"]["init_args"].get("text_size") or len(text_tokenizer)
    codes = parts["tokenizer"]["init_args"]["codebook_size"]
    vocabulary = ImageVocabulary(text_size, codes) if held is None else ImageVocabulary(held[0], codes, held[1])
    if len(text_tokenizer) == vocabulary.text_size:
        text_tokenizer.add_tokens(vocabulary.names(), special_tokens=True)
    return text_tokenizer, vocabulary


def _generation(language: dict[str, Any], text_tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What generation_config.json says: the ids that end and pad a sequence."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    told = {key: language[key] for key in keys if language.get(key) is not None}
    beside = {key: getattr(text_tokenizer, key) for key in keys[1:]}
    return {key: value for key, value in beside.items() if value is not None} | told


def _notes(
    language: dict[str, Any], text_tokenizer: PreTrainedTokenizerBase, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The keys of config.json that tell how the weights are stored and what the released training was given."""
    longest = [text_tokenizer.model_max_length, language.get("max_position_embeddings")]
    return {
        "torch_dtype": str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch."),
        "tokenizer_padding_side": "right",  # of training; generation pads left by itself
        "tokenizer_model_max_length": min(int(length) for length in longest if length),
    }


def _language(parts: dict[str, dict[str, Any]], path: Path) -> dict[str, Any]:
    """The keys of config.json that describe the AR model, in the form that every transformers since 4.51 reads."""
    arguments = dict(parts["ar"]["init_args"]["config"])
    if arguments.get("model_type") != "qwen3":
        raise ValueError(f"{path}: ar is a {arguments.get('model_type')}; the released code knows qwen3 only.")
    given = {key: value for key, value in arguments.items() if key != "model_type"}
    resolved = AutoConfig.for_model("qwen3", **given)
    arguments.pop("rope_parameters", None)
    rope = dict(resolved.rope_parameters)
    arguments["rope_theta"] = rope.pop("rope_theta")
    arguments["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    arguments["head_dim"] = resolved.head_dim
    arguments["tie_word_embeddings"] = resolved.tie_word_embeddings
    return arguments


def _config(parts: dict[str, dict[str, Any]], vocabulary: ImageVocabulary) -> dict[str, Any]:
    """The keys of config.json that the released code adds to the AR model's."""
    tokenizer = parts["tokenizer"]["init_args"]
    noise_space = parts["diffusion"]["init_args"].get("reference") is not None
    latents = parts.get("reference_latents", {}).get("class_path")
    return {
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        "vocab_size": parts["ar"]["init_args"].get("table_size") or vocabulary.size,
        **vocabulary_config(vocabulary),
        "num_new_tokens": vocabulary.num_codes,
        "mm_vision_tower": "ta_tok",
        "mm_vision_select_layer": tokenizer["select_layer"],
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_hidden_size": tokenizer["vision"].get("hidden_size", 768),
        "use_und_image_vae": latents is not None,
        "use_und_image_vae_as_noise": noise_space,
        "only_use_und_image_vae_as_noise": latents == IDLE or (noise_space and latents is None),
        "use_tar_siglip_features": "reference_features" in parts,
    }


def _write_diffusers(folder: Path, name: str, config: dict[str, Any], tensors: dict[str, Tensor], start: str) -> None:
    """Writes a model as diffusers does, of the tensors whose names start with `start`."""
    _write_json(folder / "config.json", {"_class_name": name, **config})
    state = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
