"""Whole models in bfloat16, without autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.diffusion import Codec, PixelCodec
from blip3o.pixels import to_uint8
from blip3o.tokenizers import SimVQ
from tests.published import released_pipeline
from tests.tiny import generators, tiny_dcae, tiny_head, tiny_images, tiny_model, tiny_sana


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


ROUTES: dict[str, dict[str, Any]] = {
    "features": {"reference_features": MLPBridge},
    "latents": {"reference_latents": MLPBridge},
    "width": {"reference": "width"},
    "channels": {"reference": "channels"},
}


def edited(pipe: Blip3oPipeline, picture: Image.Image | None) -> Tensor:
    """Pixels of a greedy edit, whose tokens rounding rarely moves, or without a picture of a greedy image."""
    given = {"temperature": 0.0, "num_inference_steps": 2, "output_type": "pt"}
    return pipe("a red circle", image=picture, generator=generators(1), **given).images


@pytest.mark.parametrize("route", ROUTES)
def test_a_bfloat16_model_edits_as_the_exact_one_does(route: str, tmp_path: Path) -> None:
    pipe = released_pipeline(**ROUTES[route])
    picture = Image.fromarray(to_uint8(tiny_images(1))[0])
    exact = edited(pipe, picture)
    half = Blip3oPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"), dtype=torch.bfloat16)
    actual = edited(half, picture)
    assert (actual - exact).abs().mean() < 0.05, "rounding may move a token"
    assert not torch.equal(actual, edited(half, None))


@pytest.mark.parametrize("part", ["ar", "bridge", "reference_latents", "diffusion", "diffusion.denoiser", "all but"])
def test_parts_of_several_precisions_work_together(part: str) -> None:
    """As where some are stored in bfloat16; "all but" leaves the codec alone in float32."""
    pipe = released_pipeline(reference_latents=MLPBridge, reference="channels")
    picture = Image.fromarray(to_uint8(tiny_images(1))[0])
    exact = [edited(pipe, image) for image in (picture, None)]
    if part == "all but":
        pipe.to(torch.bfloat16).model.get_submodule("diffusion.codec").float()
    else:
        pipe.model.get_submodule(part).to(torch.bfloat16)
    for image, expected in zip((picture, None), exact, strict=True):
        assert (edited(pipe, image) - expected).abs().mean() < 0.05
    losses = pipe.model.losses(
        tiny_images(1),
        ["a circle"],
        token_images=torch.nn.functional.interpolate(tiny_images(1), (28, 28)),
        generator=generators(1),
    )
    assert losses.flow.isfinite().all()


def test_under_autocast_no_precision_is_chosen() -> None:
    head = tiny_head(tiny_sana(), tiny_dcae())
    numbers = torch.ones(2, 3, dtype=torch.float64)
    assert head.denoiser.in_own_dtype(numbers).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert head.denoiser.in_own_dtype(numbers) is numbers
    assert PixelCodec().in_own_dtype(numbers) is numbers, "it has no parameters"


def test_a_codec_may_stay_in_float32(tmp_path: Path) -> None:
    pipe = released_pipeline()
    codec = pipe.model.get_submodule("diffusion.codec")
    assert isinstance(codec, Codec)
    codec.scaling_factor.fill_(0.41407)
    folder = pipe.save_pretrained(tmp_path / "model")
    half = Blip3oPipeline.from_pretrained(folder, dtype=torch.bfloat16, codec_dtype=torch.float32)
    dtypes = {name: next(part.parameters()).dtype for name, part in half.model.parts().items()}
    assert set(dtypes.values()) == {torch.bfloat16}
    kept = half.model.get_submodule("diffusion.codec").state_dict()
    for name, tensor in codec.state_dict().items():
        assert torch.equal(kept[name], tensor) and kept[name].dtype == tensor.dtype, name
    latents = torch.randn(1, *pipe.model.diffusion.latent_shape, generator=generators(1)[0])  # type: ignore[union-attr, misc]
    assert torch.equal(half.model.diffusion.decode(latents), pipe.model.diffusion.decode(latents))
    assert edited(half, None).isfinite().all()
