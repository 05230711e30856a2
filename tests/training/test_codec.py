"""CodecModule: the error falls, and the latents' normalisation is right at every checkpoint."""

from __future__ import annotations

import pytest
import torch

from blip3o.data.shapes import ShapesDataModule
from blip3o.training.base import Optimization
from blip3o.training.codec import CodecModule
from blip3o.training.history import fit_steps
from tests.tiny import tiny_dcae, tiny_images


def test_the_error_falls_and_latents_end_normalised() -> None:
    codec = tiny_dcae()
    data = ShapesDataModule(world="shapes-mini", batch_size=8, num_val=1, num_prompts=1)
    module = CodecModule(codec, Optimization(lr=3e-3, warmup_steps=1), window=10)
    steps = fit_steps(module, data, num_steps=40)
    assert steps[-1]["l1"] < 0.6 * steps[0]["l1"]
    with torch.no_grad():
        latents = codec.encode(tiny_images(64, seed=5))
    assert latents.mean().abs() < 0.1
    assert 0.85 < latents.std() < 1.15
    with pytest.raises(ValueError, match=r"window \(0\) must be at least 1"):
        CodecModule(codec, window=0)
