"""Safetensors files: reading them, and saying exactly where tensors and parts do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    with _checked(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the meta device: their shapes, without reading their numbers.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    with _checked(path), safe_open(path, framework="pt") as file:
        return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Tells of a file that is missing, or that turns out to be damaged within the block."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; the model folder is not complete{told_pickles(path.parent)}.")
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again.") from error


def told_pickles(folder: Path) -> str:
    """What to say of a folder's pickles where something else lacks; nothing where there are none."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    return f"; {', '.join(pickles)} is a pickle, which is never opened: convert it first" if pickles else ""


def misfits(
    part: nn.Module | Mapping[str, Tensor], state: Mapping[str, Tensor], told: Callable[[str], str] = str
) -> str:
    """What keeps `state` from filling a part or its tensors, every key named as `told` says it; empty where it fits."""
    own = part.state_dict() if isinstance(part, nn.Module) else part
    problems = {
        "missing": [told(key) for key in sorted(own.keys() - state.keys())],
        "unexpected": [told(key) for key in sorted(state.keys() - own.keys())],
        "mis-shaped": [
            f"{told(key)} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
    }
    return "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)


def save_part(part: nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes a part's tensors as safetensors, floating ones as `dtype`."""
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True).contiguous()
        for key, value in part.state_dict().items()
    }
    save_file(state, path, metadata={"format": "pt"})


def load_part(part: nn.Module, path: Path) -> None:
    """Fills a part from a safetensors file.

    Raises:
        ValueError: if the file is missing or damaged, or keys are missing, unexpected or mis-shaped (all are listed).
    """
    state = read_file(path)
    _check_fit(part, state, path)
    part.load_state_dict(state)


def check_part(part: nn.Module, path: Path) -> None:
    """Raises what `load_part` would, without reading the numbers."""
    _check_fit(part, read_shapes(path), path)


def _check_fit(part: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    if told := misfits(part, state):
        raise ValueError(f"{path} does not fit {type(part).__name__}: {told}.")
