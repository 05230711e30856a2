"""The released BLIP3o-NEXT checkpoints as a pipeline of our parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Qwen3Config

from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.tables import share_tied
from blip3o.ar.text import check_tokenizer_files
from blip3o.bridge.idle import IdleBridge
from blip3o.bridge.mlp import MLPBridge
from blip3o.checkpoints.configs import (
    built_from,
    check_class,
    check_vocabulary,
    defaults_of,
    language_config,
    plain,
    read_json,
    scheduler_shift,
    whole,
)
from blip3o.checkpoints.names import split_by_part, told_of
from blip3o.checkpoints.ta_tok import VISION, VISION_FILES, build_ta_tok, find_ta_tok, read_ta_tok
from blip3o.checkpoints.tensors import misfits, read_file, told_pickles
from blip3o.diffusion.codecs import DCAE
from blip3o.diffusion.flow import FlowHead, Reference
from blip3o.diffusion.objectives import FlowMatching
from blip3o.diffusion.sana import Sana
from blip3o.loading import resolve_folder
from blip3o.model import Blip3oNext

if TYPE_CHECKING:
    from blip3o.pipeline import Blip3oPipeline

_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
_STORED_TWICE = ("*/*.safetensors",)
"""What is fetched of a checkpoint at a hub, and what of it is not, as all weights lie in its root: never a pickle."""

_FILES = {"diffusion": ("transformer/config.json", "vae/config.json", "scheduler/*"), "vision": VISION_FILES}
"""What is fetched of the folders beside a checkpoint."""


def load_published(
    checkpoint: str | Path,
    *,
    diffusion: str | Path | None = None,
    vision: str | Path | None = None,
    tokenizer: str | Path | None = None,
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
        tokenizer: the image tokenizer's own file (`load_ta_tok`), or a folder or hub id that holds it, for checkpoints
            without its tensors. When None, the file that their config names as `mm_vision_tower`.
        noise_space: for editing checkpoints that join the reference's latents to the noisy ones: along which axis. The
            checkpoint does not say; the released code's is the width.
        device: where the model goes.
        dtype: of the weights; as they are stored when None.

    Raises:
        ValueError: if a folder or file is missing or damaged, a config names what is unknown, or a tensor is missing,
            unexpected or mis-shaped; they are `listed`.
    """
    from blip3o.pipeline import Blip3oPipeline

    root = resolve_folder(checkpoint, "checkpoint", wanted=_CHECKPOINT_FILES, unwanted=_STORED_TWICE)
    path = root / "config.json"
    config = read_json(path)
    weights = _weights(root)
    parts, strangers = split_by_part(read_tensors(root))
    if strangers:
        raise ValueError(f"{weights} holds tensors of no known part: {', '.join(strangers)}.")
    layer = whole(config, "mm_vision_select_layer", path, -2)
    source = _tokenizer_file(root, tokenizer, config, holds_its_own=bool(parts["tokenizer"]))
    if source is not None:
        arguments, parts["tokenizer"] = read_ta_tok(source)
        layer = whole(arguments, "select_layer_id", source, layer)
    diffusers = _beside(root, "diffusion", diffusion, config.get("diffusion_name_or_path"))
    tower = _beside(root, "vision", vision, VISION) / "config.json"
    ar = _backbone(config, root, parts["ar"])
    image_tokenizer = build_ta_tok(parts["tokenizer"], tower, source or root, select_layer=layer)
    head = _head(diffusers, noise_space if config.get("use_und_image_vae_as_noise") else None)
    model = built_from(
        root,
        lambda: Blip3oNext(
            tokenizer=image_tokenizer,
            ar=ar,
            bridge=MLPBridge,
            diffusion=head,
            reference_features=MLPBridge if config.get("use_tar_siglip_features") else None,
            reference_latents=_latents_bridge(config),
        ),
    )
    assert ar.vocabulary is not None
    check_vocabulary(config, ar.vocabulary, path)
    parts = {name: state for name, state in parts.items() if state or name in model.parts()}
    idle = sorted(parts.keys() - model.parts().keys())
    if idle:
        raise ValueError(f"{weights} holds tensors of {idle}, which {path} turns off; correct the config.")
    # The codec's normalisation is told by its config and not among the tensors.
    factors = {key: value for key, value in model.diffusion.state_dict().items() if key.endswith("_factor")}
    parts["diffusion"] = factors | parts["diffusion"]
    built_from(weights, lambda: share_tied(ar.lm, parts["ar"], "lm."))
    told = {name: misfits(part, parts[name], told_of(name)) for name, part in model.parts().items()}
    if any(told.values()):
        raise ValueError(
            f"{weights} does not fit the model that {path} describes. "
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
    return resolve_folder(given or default or "", name, wanted=_FILES[name])


def _tokenizer_file(
    root: Path, given: str | Path | None, config: dict[str, Any], *, holds_its_own: bool
) -> Path | None:
    """The image tokenizer's own file, where it has to be read because the checkpoint lacks its tensors."""
    if holds_its_own:
        if given is not None:
            raise ValueError(f"{root} holds an image tokenizer of its own; leave tokenizer ({given}) out.")
        return None
    if given is not None:
        return find_ta_tok(given, "tokenizer")
    named = str(config.get("mm_vision_tower"))
    found = next((path for path in (Path(named), root / named) if path.is_file()), None)
    if found is None:
        raise ValueError(
            f"{root} holds no image tokenizer, and its mm_vision_tower ({named}) is no file; pass tokenizer, the "
            "released ta_tok.pth."
        )
    return found


def read_tensors(root: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, mapped from its safetensors files.

    Raises:
        ValueError: if there is none, one is missing or damaged, or weights are stored as a pickle only.
    """
    weights = _weights(root)
    files = _shards(weights) if weights.suffix == ".json" else [weights]
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_file(path)
    return state


def _weights(root: Path) -> Path:
    """The file with the weights, or the index of several."""
    names = ("model.safetensors.index.json", "model.safetensors")
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        raise ValueError(f"{root} holds no model.safetensors and no index of shards{told_pickles(root)}.")
    return found


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has no weight_map; copy or download it again.")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: weight_map names {name!r}; it must name safetensors files beside it.")
    return [index.parent / name for name in sorted(set(names.values()))]


def _backbone(config: dict[str, Any], root: Path, state: dict[str, Tensor]) -> CausalLM:
    """The causal LM, over the text ids that lie below `<im_start>`."""
    path = root / "config.json"
    start = whole(config, "image_start_tag_id", path)
    last = whole(config, "image_end_token_id", path)
    embeddings = state.get("lm.model.embed_tokens.weight")
    rows = 0 if embeddings is None else len(embeddings)
    arguments = language_config(config, path)
    check_tokenizer_files(root)
    return built_from(
        path,
        lambda: CausalLM(
            arguments, text_tokenizer=str(root), text_size=start, table_size=rows if rows > last + 1 else None
        ),
        arguments,
        {"rope_theta": 1e6, **Qwen3Config().to_dict()},
    )


def _latents_bridge(config: dict[str, Any]) -> type[MLPBridge] | None:
    """How a released config conditions on the reference's latents by cross-attention."""
    if not config.get("use_und_image_vae"):
        return None
    return IdleBridge if config.get("only_use_und_image_vae_as_noise") else MLPBridge


def _head(folder: Path, reference: Reference | None) -> FlowHead:
    """SANA over DC-AE with the scheduler's shift."""
    transformer, vae = folder / "transformer/config.json", folder / "vae/config.json"
    sana, dcae = read_json(transformer), read_json(vae)
    check_class(sana, "_class_name", ("SanaTransformer2DModel",), transformer)
    check_class(dcae, "_class_name", ("AutoencoderDC",), vae)
    shift = scheduler_shift(folder / "scheduler/scheduler_config.json")
    denoiser = built_from(transformer, lambda: Sana(plain(sana)), sana, defaults_of(Sana.library))
    made_of = {key: value for key, value in plain(dcae).items() if key != "shift_factor"}
    codec = built_from(
        vae,
        lambda: DCAE(made_of, shift_factor=float(dcae.get("shift_factor") or 0.0)),
        dcae,
        defaults_of(DCAE.library),
    )
    return built_from(
        folder,
        lambda: FlowHead(
            denoiser,
            codec,
            image_size=int(denoiser.transformer.config.sample_size) * codec.spatial_factor,
            objective=FlowMatching(shift=shift),
            reference=reference,
        ),
    )
