"""`Part`: an `nn.Module` that remembers the arguments it was built with, so that a model can be saved as YAML."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Part(nn.Module):
    """Base of every component. Records the constructor's arguments as `init_args`.

    Arguments must be plain values, lists or mappings of them, or other parts. That is what lets `config()` write
    any composition as `class_path` and `init_args`, the form that jsonargparse reads.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the subclass's constructor so that its bound arguments are kept."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording_init(self: Part, *args: Any, **kwargs: Any) -> None:
            if type(self).__init__ is recording_init:
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                object.__setattr__(self, "init_args", dict(list(bound.arguments.items())[1:]))
            init(self, *args, **kwargs)

        cls.__init__ = recording_init  # type: ignore[method-assign, assignment]

    init_args: dict[str, Any]

    def in_own_dtype(self, tensor: Tensor) -> Tensor:
        """`tensor` in the precision of this part's parameters, where it has any.

        Parts of one model may be stored in several. Under autocast, which casts by itself, nothing is changed.
        """
        if torch.is_autocast_enabled(tensor.device.type):
            return tensor
        own = next((p.dtype for p in self.parameters() if p.is_floating_point()), tensor.dtype)
        return tensor.to(own)

    def config(self) -> dict[str, Any]:
        """`class_path` and `init_args` of this part and of the parts it was built from, as plain values.

        Raises:
            TypeError: if an argument can not be written as plain values.
        """
        where = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": where, "init_args": {k: _plain(v, f"{where}.{k}") for k, v in self.init_args.items()}}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Part):
        return value.config()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which can not be written to config.yaml; "
        "build parts from plain values, mappings, lists or other parts."
    )
