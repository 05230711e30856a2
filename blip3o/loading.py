"""Checks what a library's `from_pretrained` reports, which by itself leaves missing weights random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_loading_info(info: Mapping[str, Any], source: str) -> None:
    """Raises where weights did not match the model.

    Args:
        info: what transformers and diffusers return for `output_loading_info=True`.
        source: where the weights came from.

    Raises:
        ValueError: if weights are missing, unexpected or mis-shaped (all are listed).
    """
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "mis-shaped": "mismatched_keys"}
    problems = {kind: sorted(map(str, info.get(key) or ())) for kind, key in kinds.items()}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the weights in {source} do not fit its config: {told}.")
