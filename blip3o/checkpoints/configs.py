"""The configs of a released checkpoint: what they must say, and what our parts take from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import diffusers
from transformers import Qwen3Config

from blip3o.ar.vocabulary import ImageVocabulary

Built = TypeVar("Built")

_IDS: dict[str, Callable[[ImageVocabulary], int]] = {
    "image_start_tag_id": lambda v: v.image_start,
    "image_end_tag_id": lambda v: v.image_end,
    "scale_start_token_id": lambda v: v.scale(1),
    "scale_end_token_id": lambda v: v.scale(v.num_scales),
    "image_start_token_id": lambda v: v.first_code,
    "image_end_token_id": lambda v: v.size - 1,
    "num_scale_tokens": lambda v: v.num_scales,
    "num_image_tokens": lambda v: v.num_codes,
}
"""Keys of a released config.json that tell the vocabulary."""

_NOT_THE_AR = ("architectures", "model_type", "vocab_size", "torch_dtype", "dtype", "transformers_version", "use_cache")
_CHANGES_SAMPLING = (
    *("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file is missing, or is something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; the folder is not complete.")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy or download it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object, but a {type(value).__name__}; copy or download it again.")
    return value


def whole(config: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """A whole number of a config.

    Raises:
        ValueError: if the key is missing and has no default, or is no whole number.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path}: {key} ({value!r}) must be a whole number; correct the config.")
    return value


def built_from(
    path: Path,
    build: Callable[[], Built],
    config: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Built:
    """What `build` makes of a config file; whatever it raises becomes a ValueError of one line that names the file.

    Args:
        path: of the file.
        build: makes something of it.
        config: what the file says; an error that names none of its keys is told with those that it may mean.
        defaults: values that the keys have by themselves, by which a value of another type is found.
    """
    try:
        return build()
    except Exception as error:
        raise ValueError(f"{path}: {_told(error, config or {}, defaults or {})}") from error


def _told(error: Exception, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """An error in one line, with the keys of a config that it names or may mean."""
    text = " ".join((repr(error) if isinstance(error, KeyError) else str(error) or repr(error)).split())
    text = re.sub(r"config \(\{.*?\}\) ", "config ", text)  # the file is named instead
    if any(_holds(text, key) for key in config):
        return text
    strange = [key for key, value in config.items() if key in defaults and _is_unlike(value, defaults[key])]
    if isinstance(error, ZeroDivisionError):
        strange += [key for key, value in config.items() if type(value) is int and value == 0]
    meant = [key for key, value in config.items() if any(repr(word) in text for word in _words(value))] or strange
    return f"{', '.join(f'{key} ({config[key]!r})' for key in meant)}: {text}" if meant else text


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _words(value: Any) -> list[str]:
    """The strings within a value of a config."""
    if isinstance(value, dict | list):
        return [word for inner in (value.values() if isinstance(value, dict) else value) for word in _words(inner)]
    return [value] if isinstance(value, str) and value else []


def _is_unlike(value: Any, default: Any) -> bool:
    """Whether a value is no number, whole number or list where the default is one."""
    for kind, wanted in ((bool, bool), (int, int), (float, int | float), (list | tuple, list | tuple)):
        if isinstance(default, kind):
            return not isinstance(value, wanted) or (kind in (int, float) and isinstance(value, bool))
    return False


def check_class(config: dict[str, Any], key: str, known: tuple[str, ...], path: Path) -> None:
    """Raises a ValueError where a config names a class or type that is none of `known`; it may name none."""
    named = config.get(key, known[0])
    if named not in known:
        raise ValueError(f"{path}: {key} ({named!r}) must be {' or '.join(known)}; this is no released checkpoint.")


def language_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of the Qwen3 config, of a released config.json that also describes the other parts."""
    check_class(config, "model_type", ("blip3o_qwen", "blip3o_qwen_inference", "qwen3"), path)
    known = {*Qwen3Config().to_dict(), "rope_theta", "rope_scaling"}.difference(_NOT_THE_AR)
    return {"model_type": "qwen3", **{key: value for key, value in config.items() if key in known}}


def check_vocabulary(config: dict[str, Any], vocabulary: ImageVocabulary, path: Path) -> None:
    """Raises a ValueError, all keys named, where config.json places image tokens elsewhere than the model does."""
    wanted = {key: told(vocabulary) for key, told in _IDS.items() if key in config}
    wrong = [f"{key} {config[key]!r} instead of {value}" for key, value in wanted.items() if config[key] != value]
    if wrong:
        raise ValueError(f"{path} does not fit the text tokenizer and the codebook beside it: {', '.join(wrong)}.")


def vocabulary_config(vocabulary: ImageVocabulary) -> dict[str, int]:
    """The keys of a released config.json that tell the vocabulary."""
    return {key: told(vocabulary) for key, told in _IDS.items()}


def vision_config(path: Path) -> dict[str, Any]:
    """Arguments of the vision tower, of a SigLIP config or of its vision part alone."""
    config = read_json(path)
    known = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
    check_class(config, "model_type", known, path)
    vision = config.get("vision_config", config)
    if not isinstance(vision, dict):
        raise ValueError(f"{path}: vision_config ({vision!r}) must be an object; correct the config.")
    check_class(vision, "model_type", known, path)
    notes = ("architectures", "transformers_version", "torch_dtype", "dtype", "initializer_factor")
    kept = {key: value for key, value in vision.items() if key not in notes and not key.startswith("_")}
    # A vision part without a type of its own is of the whole's.
    return kept | ({"model_type": config["model_type"]} if "model_type" not in kept and "model_type" in config else {})


def scheduler_shift(path: Path) -> float:
    """The shift of the noise levels, as `FlowMatchEulerDiscreteScheduler` reads it from any scheduler's config.

    Raises:
        ValueError: if the file names no scheduler of diffusers, or says what would sample otherwise.
    """
    config = read_json(path)
    named = config.get("_class_name", "FlowMatchEulerDiscreteScheduler")
    if not (isinstance(named, str) and isinstance(getattr(diffusers, named, None), type)):
        raise ValueError(f"{path}: _class_name ({named!r}) is no scheduler of diffusers; correct the config.")
    if named == "FlowMatchEulerDiscreteScheduler":
        for key in _CHANGES_SAMPLING:
            if config.get(key):
                raise ValueError(f"{path}: {key} ({config[key]!r}) is not supported; set it to null.")
    if (steps := whole(config, "num_train_timesteps", path, 1000)) != 1000:
        raise ValueError(f"{path}: num_train_timesteps ({steps}) must be 1000, which SANA's time is counted in.")
    shift = config.get("shift", 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float):
        raise ValueError(f"{path}: shift ({shift!r}) must be a number; correct the config.")
    return float(shift)


def defaults_of(model: type) -> dict[str, Any]:
    """The values that the arguments of one of diffusers' models have by themselves."""
    return {name: argument.default for name, argument in signature(model).parameters.items()}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without the private keys that tell where it came from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
