"""The bundled model that edits does what docs/tiny-edit.md says, on a few held-out edits and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.evaluation.shapes import evaluate
from blip3o.evaluation.shapes_edit import evaluate_edits
from blip3o.shapes import SHAPES, render, sample_scene


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained("tiny-edit")


def test_it_edits_and_draws(pipe: Blip3oPipeline, tmp_path: Path) -> None:
    edits = evaluate_edits(pipe, tmp_path / "edits", num_edits=20, seed=3)
    assert edits["success"]["mean"] >= 0.6 and edits["mae"]["mean"] <= 0.03
    drawn = evaluate(pipe, tmp_path / "captions", num_captions=18, seed=3)
    assert drawn["overall"]["mean"] >= 0.6


def test_two_references_run(pipe: Blip3oPipeline) -> None:
    """Nothing is claimed of how well: it saw one picture at a time in training."""
    pictures = [Image.fromarray(render(sample_scene(SHAPES, 0, index), SHAPES)) for index in range(2)]
    instruction = "put the shape of the first image into the second"
    out = pipe(instruction, image=pictures, generator=torch.Generator().manual_seed(0))
    assert out.images[0].size == (64, 64) and np.asarray(out.images[0]).std() > 0


def test_the_same_seed_makes_the_same_edit(pipe: Blip3oPipeline) -> None:
    picture = Image.fromarray(render(sample_scene(SHAPES, 0, 3), SHAPES))
    first, again = (
        pipe("make the background black", image=picture, generator=torch.Generator().manual_seed(7)).images[0]
        for _ in range(2)
    )
    assert np.array_equal(np.asarray(first), np.asarray(again))
