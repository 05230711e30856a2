"""Whole models in bfloat16, without autocast."""

from __future__ import annotations

import pytest
import torch

from blip3o import Blip3oPipeline
from blip3o.tokenizers import SimVQ
from tests.tiny import generators, tiny_images, tiny_model


def test_a_bfloat16_model_generates_and_its_noise_levels_stay_exact(tiny_folder: object) -> None:
    pipe = Blip3oPipeline.from_pretrained(str(tiny_folder), dtype=torch.bfloat16)
    assert next(pipe.model.parameters()).dtype == torch.bfloat16
    out = pipe("a red circle", generator=generators(1), output_type="latent", num_inference_steps=2)
    assert out.latents.dtype == torch.bfloat16 and out.latents.isfinite().all()
    exact = tiny_model().diffusion.objective.levels  # type: ignore[union-attr]
    assert torch.equal(pipe.model.diffusion.objective.levels, exact)  # type: ignore[union-attr]


def test_a_bfloat16_model_trains() -> None:
    model = tiny_model().to(torch.bfloat16)
    losses = model.losses(tiny_images(2).bfloat16(), ["a red circle", "a circle"], generator=generators(2))
    (losses.cross_entropy + losses.flow.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_noise_given_in_double_precision_is_cast(tiny_pipe: Blip3oPipeline) -> None:
    noise = torch.randn(1, 48, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = {"num_inference_steps": 2, "output_type": "latent"}
    one = tiny_pipe("a circle", latents=noise, generator=generators(1), **given).latents
    other = tiny_pipe("a circle", latents=noise.float(), generator=generators(1), **given).latents
    assert torch.equal(one, other)


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_are_compared_in_float32_under_autocast(normalize: bool) -> None:
    quantizer = SimVQ(codebook_size=4096, dim=16, normalize=normalize)
    vectors = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    exact = quantizer.quantize(vectors)[1]
    with torch.autocast("cpu", torch.bfloat16):
        lowered = quantizer.quantize(vectors)[1]
    # The projection of the codebook is still a product in bfloat16, so a near tie may fall the other way.
    assert (exact == lowered).float().mean() > 0.9
