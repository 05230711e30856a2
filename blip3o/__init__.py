"""BLIP3o-NEXT in interchangeable parts: image tokenizers, AR backbones, bridges and diffusion heads.

Public names load on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Blip3oNext": "blip3o.model",
    "Blip3oPipeline": "blip3o.pipeline",
    "PipelineOutput": "blip3o.pipeline",
    "PromptTemplate": "blip3o.prompts",
    "Sampling": "blip3o.ar.base",
}

if TYPE_CHECKING:
    from blip3o.ar.base import Sampling
    from blip3o.model import Blip3oNext
    from blip3o.pipeline import Blip3oPipeline, PipelineOutput
    from blip3o.prompts import PromptTemplate

__all__ = ["Blip3oNext", "Blip3oPipeline", "PipelineOutput", "PromptTemplate", "Sampling", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a public name from where it lives."""
    if name not in _WHERE:
        raise AttributeError(f"module 'blip3o' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
