"""TA-Tok's released file, a pickle, read without unpickling more than tensors and plain values."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from blip3o.checkpoints.configs import built_from, vision_config, whole
from blip3o.checkpoints.names import TOKENIZER, to_ours, told_of
from blip3o.checkpoints.tensors import misfits
from blip3o.loading import resolve_folder
from blip3o.tokenizers.ta_tok import TATok

VISION = "google/siglip2-so400m-patch14-384"
"""The published tokenizer's vision tower."""

VISION_FILES = ("config.json", "preprocessor_config.json")
"""What is fetched of a vision tower at a hub."""

_FILE = "ta_tok.pth"
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(OrderedDict, "easydict.EasyDict")]
"""The released file keeps its arguments in this one class, in whose place a standard container is built."""


def load_ta_tok(path: str | Path, *, vision: str | Path | None = None) -> TATok:
    """Loads the image tokenizer from the file that the released code trains with, `ta_tok.pth`.

    The file holds `{"model": {"args": ..., "sd": tensors}}` (github.com/csuhan/Tar, tok/ta_tok.py). Sizes are read
    off the tensors; the arguments tell the hidden layer that is read and the temperature.

    Args:
        path: the file, or a folder or hub id that holds it.
        vision: folder or hub id with a SigLIP config.json. When None, what the file names as its teacher.

    Returns:
        The tokenizer in evaluation mode, its weights as they are stored. It takes images in [-1, 1].

    Raises:
        ValueError: if there is no such file, it is damaged or another, it holds more than tensors and plain values
            (none of it is executed then), or a tensor is missing, unexpected or mis-shaped (they are `listed`).
    """
    path = find_ta_tok(path, "path")
    arguments, state = read_ta_tok(path)
    named = vision or arguments.get("teacher") or VISION
    config = resolve_folder(named, "vision", wanted=VISION_FILES) / "config.json"
    layer, temperature = whole(arguments, "select_layer_id", path, -2), _temperature(arguments, path)
    tokenizer = build_ta_tok(state, config, path, select_layer=layer, temperature=temperature)
    if (size := arguments.get("input_size", tokenizer.image_size)) != tokenizer.image_size:
        raise ValueError(f"{path}: input_size ({size}) is not the image_size of {config} ({tokenizer.image_size}).")
    if told := misfits(tokenizer, state, lambda key: told_of("tokenizer")(key).removeprefix(TOKENIZER)):
        raise ValueError(f"{path} does not fit {config}: {told}.")
    tokenizer.load_state_dict(state, assign=True)
    return tokenizer.eval()


def find_ta_tok(path: str | Path, argument: str) -> Path:
    """The file at a path, or in a folder or hub repository; a ValueError that names the argument where none is."""
    return Path(path) if Path(path).is_file() else resolve_folder(path, argument, "the file, ", wanted=[_FILE]) / _FILE


def build_ta_tok(
    state: Mapping[str, Tensor], vision: Path, source: Path, *, select_layer: int, temperature: float | None = 0.03
) -> TATok:
    """TA-Tok with fresh weights, of the sizes that its tensors have.

    Args:
        state: its tensors under our names.
        vision: SigLIP config.json.
        source: where the tensors came from, for messages.
        select_layer: hidden layer that is read.
        temperature: of the codes drawn in training.

    Raises:
        ValueError: if there is no codebook, or `vision` is no config of a SigLIP tower.
    """
    codebook = state.get("quantizer.codebook.weight")
    if codebook is None or codebook.ndim != 2:
        raise ValueError(f"{source} holds no codebook; it holds no TA-Tok.")
    layers = [int(found[1]) for key in state if (found := re.match(r"decoder\.encoder\.layers\.(\d+)\.", key))]
    config = vision_config(vision)
    return built_from(
        vision,
        lambda: TATok(
            config,
            codebook_size=codebook.shape[0],
            bottleneck_dim=codebook.shape[1],
            select_layer=select_layer,
            decoder_depth=max(layers, default=-1) + 1,
            temperature=temperature,
        ),
        config,
        SiglipVisionConfig().to_dict(),
    )


def read_ta_tok(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and tensors, these under our names, of a TA-Tok file.

    As in the released code, the layer that scales images is replaced by one that takes them in [-1, 1].

    Raises:
        ValueError: if the file is missing, damaged or another, or is refused.
    """
    content = _read_plain(path)
    inner = content.get("model")
    spec = inner if isinstance(inner, Mapping) and "sd" in inner else content
    stored = next((spec[key] for key in ("sd", "state_dict", "model") if isinstance(spec.get(key), Mapping)), spec)
    tensors = {str(key): value for key, value in stored.items() if isinstance(value, Tensor)}
    arguments = {} if stored is spec else spec.get("args", {})
    if not tensors or not isinstance(arguments, Mapping):
        raise ValueError(f"{path} holds no tensors under model/sd with their args beside; it is no TA-Tok file.")
    state: dict[str, Tensor] = {}
    strangers = []
    for key, tensor in tensors.items():
        renamed = to_ours(TOKENIZER + key)
        if renamed is not None:
            state[renamed[1]] = tensor
        elif not key.startswith("teacher"):
            strangers.append(key)
    if strangers:
        raise ValueError(f"{path} holds tensors that TA-Tok does not know: {', '.join(sorted(strangers))}.")
    state |= {"input_shift": torch.zeros(1, 3, 1, 1), "input_scale": torch.ones(1, 3, 1, 1)}
    return dict(arguments), state


def _read_plain(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, tensors and plain values alone."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; pass the released {_FILE}.")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)|unrecognized function (.+)", str(error))
        if refused is not None:
            raise ValueError(
                f"{path} holds {refused[1] or refused[2]}, which is neither a tensor nor a plain value; it was refused "
                "and nothing of it was executed. Use the released file."
            ) from error
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        raise ValueError(f"{path} can not be read ({reason.strip()}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it is no TA-Tok file.")
    return content


def _temperature(arguments: Mapping[str, Any], path: Path) -> float | None:
    """The temperature at which the released quantizer draws codes in training, None where it does not."""
    settings: Any = arguments
    for key in ("bottleneck", "args", "regularizer"):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping):
        return 0.03
    name, chosen = settings.get("name", "simvq"), settings.get("args") or {}
    if name != "simvq" or not chosen.get("l2_normalized", True):
        raise ValueError(f"{path}: regularizer ({dict(settings)}) must be a simvq with l2_normalized, as the released.")
    return float(chosen.get("stochastic_temperature", 0.03)) if chosen.get("stochastic", True) else None
