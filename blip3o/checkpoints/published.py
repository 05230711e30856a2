"""The released BLIP3o-NEXT checkpoints as a pipeline of our parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blip3o.ar.causal_lm import CausalLM
from blip3o.bridge.mlp import MLPBridge
from blip3o.checkpoints.names import split_by_part
from blip3o.checkpoints.tensors import misfits, read_file
from blip3o.diffusion.codecs import DCAE
from blip3o.diffusion.flow import FlowHead, Reference
from blip3o.diffusion.objectives import FlowMatching
from blip3o.diffusion.sana import Sana
from blip3o.loading import resolve_folder
from blip3o.model import Blip3oNext
from blip3o.tokenizers.ta_tok import TATok

if TYPE_CHECKING:
    from blip3o.pipeline import Blip3oPipeline

VISION = "google/siglip2-so400m-patch14-384"
"""The published tokenizer's vision tower."""

_NOT_THE_AR = (
    *("architectures", "model_type", "vocab_size", "torch_dtype", "dtype", "transformers_version", "use_cache"),
    *("diffusion_name_or_path", "use_und_image_vae", "use_und_image_vae_as_noise", "only_use_und_image_vae_as_noise"),
    *("use_tar_siglip_features", "use_mm_proj", "vision_tower_pretrained", "num_new_tokens", "num_image_tokens"),
    *("num_scale_tokens", "tokenizer_model_max_length", "tokenizer_padding_side"),
)
"""Keys of a released config.json that describe other parts, or how it was made."""


def load_published(
    checkpoint: str | Path,
    *,
    diffusion: str | Path | None = None,
    vision: str | Path | None = None,
    noise_space: Reference = "width",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Blip3oPipeline:
    """Loads a checkpoint in the layout that the released code writes.

    Args:
        checkpoint: folder or hub id with config.json, the text tokenizer and safetensors weights, in one file or
            sharded.
        diffusion: folder or hub id whose transformer/, vae/ and scheduler/ hold diffusers configs. When None, the
            folder `diffusion` of the checkpoint, or else what its config names. Weights come from the checkpoint alone.
        vision: folder or hub id with a SigLIP config.json. When None, the folder `vision` of the checkpoint, or else
            the published tower.
        noise_space: for editing checkpoints that join the reference's latents to the noisy ones: along which axis. The
            checkpoint does not say; the released code's is the width.
        device: where the model goes.
        dtype: of the weights; as they are stored when None.

    Raises:
        ValueError: if a folder or file is missing or damaged, or a tensor is missing, unexpected or mis-shaped; all
            are listed by part.
    """
    from blip3o.pipeline import Blip3oPipeline

    root = resolve_folder(checkpoint, "checkpoint")
    config = _read_json(root / "config.json")
    parts, strangers = split_by_part(read_tensors(root))
    if strangers:
        raise ValueError(f"{root} holds tensors of no known part: {', '.join(strangers)}.")
    diffusers = _beside(root, "diffusion", diffusion, config.get("diffusion_name_or_path"))
    tower = _read_json(_beside(root, "vision", vision, VISION) / "config.json")
    model = Blip3oNext(
        tokenizer=_tokenizer(tower.get("vision_config", tower), config, parts["tokenizer"], root),
        ar=_backbone(config, root),
        bridge=MLPBridge,
        diffusion=_head(diffusers, noise_space if config.get("use_und_image_vae_as_noise") else None),
        reference_features=MLPBridge if config.get("use_tar_siglip_features") else None,
        reference_latents=MLPBridge if _reads_latents(config) else None,
    )
    parts = {name: state for name, state in parts.items() if state or name in model.parts()}
    idle = sorted(parts.keys() - model.parts().keys())
    if idle:
        raise ValueError(f"{root} holds tensors of {idle}, which its config.json turns off; correct the config.")
    # The codec's normalisation is told by its config and not among the tensors.
    factors = {key: value for key, value in model.diffusion.state_dict().items() if key.endswith("_factor")}
    parts["diffusion"] = factors | parts["diffusion"]
    told = {name: misfits(part, parts[name]) for name, part in model.parts().items()}
    if any(told.values()):
        raise ValueError(
            f"{root} does not fit the model its config describes. "
            + " ".join(f"{part}: {problems}." for part, problems in told.items() if problems)
        )
    for name, part in model.parts().items():
        part.load_state_dict(parts[name], assign=True)
    return Blip3oPipeline(model.to(device, dtype))


def _beside(root: Path, name: str, given: str | Path | None, default: str | None) -> Path:
    """The folder that was given, or that an export put into the checkpoint, or the default."""
    if given is None and (root / name).is_dir():
        return root / name
    if given is None and not default:
        raise ValueError(f"{root / 'config.json'} names no {name}; pass {name}.")
    return resolve_folder(given or default or "", name)


def read_tensors(root: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, mapped from its safetensors files.

    Raises:
        ValueError: if there is none, one is missing or damaged, or weights are stored as a pickle only.
    """
    index = root / "model.safetensors.index.json"
    single = root / "model.safetensors"
    if index.is_file():
        files = sorted({root / name for name in _read_json(index).get("weight_map", {}).values()})
    elif single.is_file():
        files = [single]
    else:
        pickles = sorted(path.name for path in root.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        told = f"; {', '.join(pickles)} is a pickle, which is never opened: convert it first" if pickles else ""
        raise ValueError(f"{root} holds no model.safetensors and no index of shards{told}.")
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_file(path)
    return state


def _tokenizer(vision: dict[str, Any], config: dict[str, Any], state: dict[str, Tensor], root: Path) -> TATok:
    """TA-Tok of the sizes that its tensors have."""
    codebook = state.get("quantizer.codebook.weight")
    if codebook is None:
        raise ValueError(f"{root} holds no codebook; it is no checkpoint of BLIP3o-NEXT.")
    layers = [int(found[1]) for key in state if (found := re.match(r"decoder\.encoder\.layers\.(\d+)\.", key))]
    return TATok(
        vision,
        codebook_size=codebook.shape[0],
        bottleneck_dim=codebook.shape[1],
        select_layer=int(config.get("mm_vision_select_layer", -2)),
        decoder_depth=max(layers, default=-1) + 1,
    )


def _backbone(config: dict[str, Any], root: Path) -> CausalLM:
    """The causal LM, over the text ids that lie below `<im_start>`."""
    kept = {k: v for k, v in config.items() if k not in _NOT_THE_AR and not k.startswith("mm_")}
    kept = {k: v for k, v in kept.items() if not re.match(r"(image|scale)_(start|end)_", k)}
    return CausalLM(
        {"model_type": "qwen3", **kept}, text_tokenizer=str(root), text_size=int(config["image_start_tag_id"])
    )


def _reads_latents(config: dict[str, Any]) -> bool:
    """Whether a released config conditions on the reference's latents by cross-attention."""
    return bool(config.get("use_und_image_vae")) and not config.get("only_use_und_image_vae_as_noise")


def _head(folder: Path, reference: Reference | None) -> FlowHead:
    """SANA over DC-AE with the scheduler's shift."""
    denoiser = Sana(_plain(_read_json(folder / "transformer/config.json")))
    codec = DCAE(_plain(_read_json(folder / "vae/config.json")))
    scheduler = _read_json(folder / "scheduler/scheduler_config.json")
    return FlowHead(
        denoiser,
        codec,
        image_size=int(denoiser.transformer.config.sample_size) * codec.spatial_factor,
        objective=FlowMatching(shift=float(scheduler.get("shift", 1.0))),
        reference=reference,
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; the folder is not complete.")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON object ({error}); copy or download it again.") from error
