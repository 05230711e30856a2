"""transformers' configs from plain values, and back."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from blip3o.loading import check_keys

_LEGACY_KEYS = ("rope_theta", "rope_scaling")  # read by transformers, though no attributes of every config


def resolve_config(values: dict[str, Any]) -> PreTrainedConfig:
    """A transformers config of `values`, which name its model_type.

    Raises:
        ValueError: on an unknown model_type or key, or a value of the wrong type.
    """
    arguments = dict(values)
    model_type = arguments.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
        for name, part in known.sub_configs.items():  # of a vision-language model, whose text part has the vocabulary
            if name == "text_config":
                size = {"vocab_size": arguments.pop("vocab_size")} if "vocab_size" in arguments else {}
                arguments[name] = size | dict(arguments.get(name) or {})
            if issubclass(part, PreTrainedConfig):
                given = arguments.get(name) or {}
                check_keys(f"config.{name}", given, {*dir(part()), *_LEGACY_KEYS}, f"{model_type} of transformers")
        check_keys("config", arguments, {*dir(known), *_LEGACY_KEYS}, f"{model_type} of transformers")
        return AutoConfig.for_model(model_type, **arguments)
    except ValueError:
        raise
    except Exception as error:  # transformers' strict configs raise a type of their own
        raise ValueError(f"config ({values}) does not suit {model_type}: {error}") from error


def without_notes(values: dict[str, Any]) -> dict[str, Any]:
    """A config without the library's own notes, nor the dtype of the weights, at any depth."""
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key != "dtype"}
    return {key: without_notes(value) if isinstance(value, dict) else value for key, value in kept.items()}
