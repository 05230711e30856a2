"""Reading and writing models: a folder with `config.yaml` and one safetensors file a part."""

from __future__ import annotations

import inspect
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from blip3o.bridge.base import Bridge
from blip3o.checkpoints.tensors import check_part, load_part, permit, save_part
from blip3o.model import Blip3oNext
from blip3o.part import Part
from blip3o.prompts import PromptTemplate

CONFIG_NAME = "config.yaml"
TEXT_TOKENIZER = "text_tokenizer"
MODEL_FILES = (CONFIG_NAME, "*.safetensors", f"{TEXT_TOKENIZER}/*")
"""What is fetched of a model folder at a hub."""

TRUSTED = ("blip3o", "transformers", "diffusers", "timm", "torch")


def save_model(
    model: Blip3oNext, folder: str | Path, *, generation: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Writes a model folder; it appears whole or not at all.

    Args:
        model: what to save.
        folder: where; an existing model there is replaced, anything else is left alone.
        generation: default arguments of generation to store beside the model.
        dtype: of the stored floating tensors; their own when None.

    Raises:
        ValueError: if `folder` is a file, can not be made, or holds anything that is no part of a saved model.
    """
    folder = Path(folder)
    check_model_folder(folder)
    config = model.config()
    with replacing(folder) as new:
        for name, part in model.parts().items():
            save_part(part, new / f"{name}.safetensors", dtype)
        arguments = config["init_args"]["ar"]["init_args"]
        if "text_tokenizer" in arguments:
            model.ar.text_tokenizer.save_pretrained(new / TEXT_TOKENIZER)
            arguments["text_tokenizer"] = TEXT_TOKENIZER
        text = yaml.safe_dump({"model": config, "generation": generation or {}}, sort_keys=False, width=120)
        (new / CONFIG_NAME).write_text(text)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raises a ValueError unless a model can be written to `folder`: nothing, an empty folder, or a model's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder ({folder}) is a file; choose another path.")
    check_writable(folder, "folder")
    others = sorted(path.name for path in folder.iterdir() if not _is_ours(path)) if folder.exists() else []
    if others:
        raise ValueError(
            f"folder ({folder}) holds {others[0]}, which is no model's; choose an empty folder or a model's."
        )


def check_writable(folder: Path, argument: str) -> None:
    """Raises a ValueError, naming the argument, where `replacing` could not put `folder` into place."""
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise ValueError(f"{argument} ({folder}) lies below {above}, which is no folder; choose another path.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{argument} ({folder}) can not be made: {above} is not writable; choose another path.")


def _is_ours(path: Path) -> bool:
    """Whether a file or folder is what `save_model` writes."""
    return path.name in (CONFIG_NAME, TEXT_TOKENIZER) or (path.suffix == ".safetensors" and path.is_file())


def load_model(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[Blip3oNext, dict[str, Any]]:
    """Reads a model folder: the model in float32 and evaluation mode, and its default arguments of generation.

    Args:
        folder: written by `save_model`.
        trust_remote_code: also import classes from outside blip3o, transformers, diffusers, timm and torch.

    Raises:
        ValueError: if the folder or one of its files is missing, damaged or does not fit the configuration.
    """
    folder = Path(folder)
    model, generation = build_model(folder, trust_remote_code=trust_remote_code)
    for name, part in model.parts().items():
        load_part(part, folder / f"{name}.safetensors")
    return model.eval(), generation


def describe_model(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[Blip3oNext, dict[str, Any]]:
    """Like `load_model`, but on the meta device: the shapes of the weights are read and checked, not the weights."""
    folder = Path(folder)
    with torch.device("meta"):
        model, generation = build_model(folder, trust_remote_code=trust_remote_code)
    for name, part in model.parts().items():
        check_part(part, folder / f"{name}.safetensors")
    return model.eval(), generation


def build_model(folder: Path, *, trust_remote_code: bool = False) -> tuple[Blip3oNext, dict[str, Any]]:
    """The model of a folder with fresh weights, and its default arguments of generation; raises as `load_model`."""
    config, generation = read_config(folder)
    ar = config["init_args"]["ar"]["init_args"]
    if ar.get("text_tokenizer") == TEXT_TOKENIZER:
        ar["text_tokenizer"] = str(folder / TEXT_TOKENIZER)
        if not (folder / TEXT_TOKENIZER).is_dir():
            raise ValueError(f"{folder / TEXT_TOKENIZER} is missing; the model folder is not complete.")
    try:
        return instantiate(config, trust_remote_code=trust_remote_code), generation
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and default arguments of generation of a model folder.

    Raises:
        ValueError: if the folder holds none, or it describes no model.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"folder ({folder}) has no {CONFIG_NAME}; pass a folder that save_pretrained wrote.")
    try:
        stored = yaml.safe_load(path.read_text())
        config, generation = dict(stored["model"]), dict(stored.get("generation") or {})
        config["init_args"]["ar"]["init_args"].get("text_tokenizer")
        config["init_args"].keys()
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else repr(error)
        raise ValueError(f"{path} is no model configuration ({told}); save the model again.") from error
    return config, generation


def instantiate(config: dict[str, Any], *, trust_remote_code: bool = False) -> Blip3oNext:
    """Builds a model from `class_path` and `init_args`.

    Raises:
        ValueError: if a class is not from a trusted package, or the configuration does not fit the classes.
    """
    foreign = {key: path for key, path in _class_paths(config, "model") if path.split(".")[0] not in TRUSTED}
    if foreign and not trust_remote_code:
        raise ValueError(
            f"the model names classes outside {TRUSTED} under {', '.join(foreign)}: {sorted(set(foreign.values()))}; "
            "pass trust_remote_code=True if you trust them."
        )
    model = _build(config, "model")
    if not isinstance(model, Blip3oNext):
        raise ValueError(f"the configuration describes a {type(model).__name__}; it must describe a Blip3oNext.")
    return model


def _build(value: Any, where: str) -> Any:
    """Builds the parts that `Part.config` wrote; a bridge without its widths becomes a callable that takes them.

    Only a `class_path` is ever imported. (jsonargparse, which reads training's YAML, would also import the class that
    a plain string names and read the file that it names.)

    Args:
        value: a part's configuration, or any value in one.
        where: its key, for messages.
    """
    if isinstance(value, list):
        return [_build(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _build(item, f"{where}.{key}") for key, item in value.items()}
    given = value.get("init_args") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{where}.init_args ({given!r}) does not fit its classes; it must be a mapping.")
    arguments = {key: _build(item, f"{where}.init_args.{key}") for key, item in given.items()}
    try:
        return _part(value, arguments)
    except Exception as error:
        raise ValueError(
            f"{where} is a {value['class_path']}, but the configuration does not fit its classes: {error}"
        ) from error


def _part(value: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """The part of a configuration, its arguments built."""
    cls = pkgutil.resolve_name(value["class_path"])
    if not (isinstance(cls, type) and issubclass(cls, Part)):
        raise TypeError(f"{value['class_path']} is no Part.")
    if strange := value.keys() - {"class_path", "init_args"}:
        raise TypeError(f"{value['class_path']} is given {sorted(strange)} beside class_path and init_args.")
    if issubclass(cls, Blip3oNext) and "template" in arguments:
        arguments["template"] = PromptTemplate(**arguments["template"])
    if issubclass(cls, Bridge) and "in_features" not in arguments:
        inspect.signature(cls).bind(0, 0, **arguments)  # what does not fit is told of this part, not of the model
        return partial(cls, **arguments)
    return cls(**arguments)


def _class_paths(config: Any, where: str) -> Iterator[tuple[str, str]]:
    """Key and class of everything in a configuration that names one."""
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield f"{where}.class_path", config["class_path"]
        for key, value in config.items():
            yield from _class_paths(value, f"{where}.{key}")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _class_paths(value, f"{where}[{index}]")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and vanishes when it does not.

    So do the folders above it that were made for it.
    """
    made = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        for path in (new, *new.rglob("*")):
            permit(path)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.replace(old / folder.name)
            try:
                new.replace(folder)
            except OSError:
                (old / folder.name).replace(folder)
                raise
            finally:
                shutil.rmtree(old)
        else:
            new.replace(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        for above in made:
            with suppress(OSError):  # someone else may have put something there
                above.rmdir()
        raise
