"""Which parameters train, by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(module: nn.Module, trainable: Sequence[str]) -> list[str]:
    """Makes the parameters that match one of the patterns trainable, and freezes all others.

    Args:
        module: whose parameters.
        trainable: `fnmatch` patterns of parameter names, such as `bridge.*`.

    Returns:
        The names that train.

    Raises:
        ValueError: if a pattern matches no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    idle = [pattern for pattern in trainable if not any(fnmatchcase(name, pattern) for name in names)]
    if idle:
        tops = sorted({name.split(".")[0] + ".*" for name in names})
        raise ValueError(f"trainable patterns {idle} match no parameter; the parts are {tops}.")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in trainable))
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]
