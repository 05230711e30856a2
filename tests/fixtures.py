"""Numbers that the released code produced, which lie beside the repository; tests that need them skip without."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "shared/fixtures"

needs_fixtures = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}: the released code's numbers")


@cache
def expected(name: str) -> dict[str, Tensor]:
    """The released code's outputs for `t2i` or `edit`."""
    return load_file(FOLDER / name / "expected.safetensors")


@cache
def weights(name: str, prefix: str) -> dict[str, Tensor]:
    """The checkpoint's tensors whose names start with `prefix`, by the rest of their names."""
    state = load_file(FOLDER / name / "checkpoint/model.safetensors")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def described(name: str, file: str) -> dict[str, Any]:
    """A JSON file of the fixture."""
    return dict(json.loads((FOLDER / name / file).read_text()))
