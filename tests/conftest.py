"""A tiny untrained pipeline, in memory and saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from blip3o.pipeline import Blip3oPipeline


@pytest.fixture(scope="session")
def tiny_pipe() -> Blip3oPipeline:
    """32-pixel pictures of the world shapes-mini, in two steps unless a call says more."""
    from blip3o.pipeline import Blip3oPipeline, GenerationDefaults
    from tests.tiny import tiny_model

    return Blip3oPipeline(tiny_model(), GenerationDefaults(num_inference_steps=2, top_k=0))


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe: Blip3oPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_pipe` as a model folder; not to be changed."""
    return tiny_pipe.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")
