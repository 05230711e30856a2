"""Safetensors files: reading them, and saying exactly where tensors and parts do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; the model folder is not complete.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again.") from error


def misfits(part: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from filling a part, every key named; empty where it fits."""
    own = part.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "mis-shaped": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
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
    if told := misfits(part, state):
        raise ValueError(f"{path} does not fit {type(part).__name__}: {told}.")
    part.load_state_dict(state)
