"""Safetensors files: reading them, and saying exactly where tensors and parts do not fit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o.loading import listed


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    with _checked(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the meta device: their shapes and types, without reading their numbers.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    with _checked(path), safe_open(path, framework="pt") as file:
        return {key: _described(file, key) for key in file.keys()}  # noqa: SIM118


def _described(file: Any, key: str) -> Tensor:
    """A tensor of an open safetensors file on the meta device; of its numbers none, or the only one, is read."""
    view = file.get_slice(key)
    shape = view.get_shape()
    return torch.empty(shape, dtype=(view[0:0] if shape else file.get_tensor(key)).dtype, device="meta")


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
    """What keeps `state` from filling a part or its tensors, keys `listed` as `told` says them; empty where it fits.

    Any floating type fills any other, and so do whole numbers; one kind never fills the other.
    """
    own = part.state_dict() if isinstance(part, nn.Module) else part
    problems = {
        "missing": [told(key) for key in sorted(own.keys() - state.keys())],
        "unexpected": [told(key) for key in sorted(state.keys() - own.keys())],
        "mis-shaped": [
            f"{told(key)} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
        "wrong type": [
            f"{told(key)} {state[key].dtype} instead of {own[key].dtype}"
            for key in sorted(own.keys() & state.keys())
            if own[key].is_floating_point() != state[key].is_floating_point()
        ],
    }
    return "; ".join(f"{what}: {listed(keys)}" for what, keys in problems.items() if keys)


def save_part(part: nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes a part's tensors as safetensors, floating ones as `dtype`."""
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True).contiguous()
        for key, value in part.state_dict().items()
    }
    save_file(state, path, metadata={"format": "pt"})
    permit(path)


def permit(path: Path) -> None:
    """Lets others use a file or folder as far as the umask does; safetensors and `mkdtemp` keep theirs to the owner."""
    umask = os.umask(0o077)  # it can be asked only by setting it
    os.umask(umask)
    path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o777 if path.is_dir() else 0o666) & ~umask)


def load_part(part: nn.Module, path: Path) -> None:
    """Fills a part from a safetensors file.

    Raises:
        ValueError: if the file is missing or damaged, or keys are missing, unexpected, mis-shaped or of the wrong type
            (they are `listed`).
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
