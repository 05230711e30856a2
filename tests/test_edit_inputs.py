"""What a call takes as reference images, which sizes come out, and guidance by images through the pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.diffusion import FlowHead, PixelCodec
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.pixels import as_rgb, covering, to_uint8
from blip3o.reference_images import as_picture, check_images
from tests.test_editing import pictures, pipeline
from tests.tiny import PLAIN_EDITS, generators, tiny_ar, tiny_dit, tiny_images, tiny_tokenizer

SHOWN = ["latents", "width", "channels", "all"]
TWO_REFERENCES = ["tokens", "features", "latents"]


def latents(route: str, image: Any, prompt: str | list[str] = "a red circle", **given: Any) -> Tensor:
    rows = (1 if isinstance(prompt, str) else len(prompt)) * given.get("num_images_per_prompt", 1)
    return pipeline(route)(prompt, image=image, generator=generators(rows), output_type="latent", **given).latents


def test_arrays_and_tensors_are_the_pictures_that_calls_return() -> None:
    pipe = pipeline("all")
    outputs: list[Any] = [
        pipe("a circle", image=pictures(1)[0], generator=generators(1), output_type=kind).images  # type: ignore[arg-type]
        for kind in ("pil", "np", "pt")
    ]
    pil, array, tensor = outputs
    expected = latents("all", pil[0])
    for image in (pil, array, tensor, array[0], tensor[0], np.asarray(pil[0]), torch.from_numpy(np.array(pil[0]))):
        given = image.movedim(-1, 0) if isinstance(image, Tensor) and image.dtype == torch.uint8 else image
        assert torch.equal(latents("all", given), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.full((20, 24), 77, np.uint8),
        np.full((20, 24, 1), 77, np.uint8),
        np.full((20, 24, 3), 77 / 255, np.float16),
        np.concatenate([np.zeros((20, 24, 3)), np.full((20, 24, 1), 178 / 255)], axis=2),
    ],
    ids=["grey", "one channel", "float16", "alpha"],
)
def test_other_arrays_and_tensors_become_rgb(array: np.ndarray) -> None:
    tensor = torch.from_numpy(array if array.ndim == 2 else np.moveaxis(array, 2, 0).copy())
    for value in (array, tensor):
        shown = as_picture(value)
        assert (shown.mode, shown.size, shown.getpixel((3, 3))) == ("RGB", (24, 20), (77, 77, 77))


def test_pictures_are_shown_as_their_viewer_shows_them() -> None:
    """Turned as EXIF says, over white, in RGB; `blip3o.pixels.as_rgb` has tests of its own."""
    [[turned]] = check_images(_exif_turned(), 1, alone=True)
    assert turned.size == (20, 40) and turned.getpixel((0, 0)) == (255, 0, 0)
    clear = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    assert as_picture(clear).getpixel((4, 4)) == (255, 255, 255)


def _exif_turned() -> Image.Image:
    """Wide as stored and high as shown, its left half red, which comes to the top."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    image.getexif()[0x0112] = 6
    return image


def test_lists_have_a_picture_or_several_for_each_prompt() -> None:
    first, second = pictures()
    prompts = ["a red circle", "a circle and a square"]
    both = latents("latents", [first, second], prompts)
    assert torch.equal(both, latents("latents", [[first], [second]], prompts))
    arrays = np.stack([np.asarray(first), np.asarray(second)])
    assert torch.equal(both, latents("latents", arrays, prompts))
    pairs = latents("latents", [[first, second], [second, first]], prompts)
    assert torch.equal(pairs, latents("latents", np.stack([arrays, arrays[::-1]]), prompts))
    assert not torch.equal(pairs, both)
    twice = latents("latents", [first, second], prompts, num_images_per_prompt=2)
    spelt_out = [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert torch.equal(twice, latents("latents", [first, first, second, second], spelt_out))


@pytest.mark.parametrize("route", TWO_REFERENCES)
def test_two_references_run_end_to_end_and_both_matter(route: str) -> None:
    first, second = pictures()
    out = pipeline(route)("a circle", image=[first, second], generator=generators(1))
    assert out.images[0].size == (36, 30) or out.images[0].size == (30, 36)
    one = latents(route, [first, second])
    for other in ([first, first], [second, second], [first]):
        assert not torch.equal(one, latents(route, other))


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 48), (30, 36)), ((48, 40), (36, 30)), ((64, 64), (32, 32)), ((200, 25), (90, 12))]
)
def test_the_outputs_keep_the_first_pictures_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    first = pictures(1)[0].resize(size)
    for route, image in (("width", first), ("latents", [first, pictures(1)[0].resize((90, 30))])):
        out = pipeline(route)("a circle", image=image, generator=generators(1)).images[0]
        assert out.size == expected
    square = pipeline("width")("a circle", image=first, generator=generators(1), aspect="square").images[0]
    assert square.size == (32, 32)


def test_a_picture_is_covered_around_its_centre() -> None:
    wide = Image.new("RGB", (80, 20), "blue")
    wide.paste("red", (20, 0, 60, 20))
    shown = to_uint8(covering(wide, 20, 40)[None])[0]
    assert (shown[:, 2:-2] == [255, 0, 0]).all(), "the middle half"
    assert covering(wide, 16, 64).shape == (3, 16, 64) and covering(wide, 16, 16).shape == (3, 16, 16)


def test_a_denoiser_of_squares_edits_the_central_square() -> None:
    head = FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, reference="channels")
    pipe = Blip3oPipeline(
        Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, head, PLAIN_EDITS),
        GenerationDefaults(num_inference_steps=1, top_k=0),
    )
    wide = pictures(1)[0].resize((64, 32))
    out = pipe("a circle", image=wide, generator=generators(1), output_type="latent")
    assert out.latents.shape == (1, 48, 8, 8)
    references = pipe._references([[wide]], 1, "keep")["references"]
    assert torch.equal(references[0, 0], covering(wide.crop((16, 0, 48, 32)), 32, 32))


def test_a_batch_of_several_sizes_is_refused_with_the_remedy() -> None:
    images = [picture.resize(size) for picture, size in zip(pictures(), [(40, 48), (48, 40)], strict=True)]
    with pytest.raises(
        ValueError, match=r"several sizes \(36 x 30, 30 x 36\), but a batch has one; .* aspect='square'"
    ):
        latents("width", images, ["a circle", "a square"])
    assert latents("width", images, ["a circle", "a square"], aspect="square").shape == (2, 12, 16, 16)
    with pytest.raises(ValueError, match=r"aspect \('wide'\) must be 'keep' or 'square'"):
        latents("width", images[0], aspect="wide")


@pytest.mark.parametrize("route", SHOWN)
def test_guidance_by_images_changes_edits_and_its_defaults_change_nothing(route: str) -> None:
    image = pictures(1)[0]
    published = latents(route, image)
    guided = latents(route, image, image_guidance_scale=3.0)
    assert (guided - published).abs().max() > 1e-3
    one = latents(route, image, image_guidance_scale=1.0)
    assert torch.equal(one, published) is (route in ("width", "channels")), "where nothing follows the condition"
    stored = Blip3oPipeline(pipeline(route).model, replace(pipeline(route).defaults, image_guidance_scale=3.0))
    given: dict[str, Any] = {"generator": generators(1), "output_type": "latent"}
    assert torch.equal(stored("a red circle", image=image, **given).latents, guided)
    plain = pipeline(route)("a circle", generator=generators(1), output_type="latent").latents
    given["generator"] = generators(1)
    assert torch.equal(stored("a circle", **given).latents, plain), "without images it is not used"


def test_defaults_are_saved_where_they_say_something(tmp_path: Any) -> None:
    pipe = pipeline("latents")
    assert "image_guidance_scale" not in (pipe.save_pretrained(tmp_path / "a") / "config.yaml").read_text()
    stored = Blip3oPipeline(pipe.model, replace(pipe.defaults, image_guidance_scale=1.5))
    again = Blip3oPipeline.from_pretrained(stored.save_pretrained(tmp_path / "b"))
    assert again.defaults == stored.defaults


@pytest.mark.parametrize(
    ("route", "given", "told"),
    [
        ("latents", {"image": None, "image_guidance_scale": 2.0}, r"\(2.0\) was given without image; leave it out"),
        ("tokens", {"image_guidance_scale": 2.0}, r"image_guidance_scale \(2.0\) is about .* reference_latents or"),
        ("features", {"image_guidance_scale": 1.0}, r"image_guidance_scale \(1.0\) is about .* FlowHead\(reference="),
        ("latents", {"image_guidance_scale": -1.0}, r"image_guidance_scale \(-1.0\) must be at least 0"),
        ("latents", {"image_guidance_scale": float("nan")}, r"image_guidance_scale \(nan\) must be a finite number"),
    ],
)
def test_guidance_by_images_is_refused_where_it_means_nothing(route: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        latents(route, **({"image": pictures(1)[0]} | given))
    if given.get("image", True) is None:
        with pytest.raises(ValueError, match=r"image_guidance_scale \(2.0\) needs `references`"):
            pipeline(route).model.generate(["a circle"], image_guidance_scale=2.0)


def test_the_picture_that_was_given_is_left_as_it_was() -> None:
    image = pictures(1)[0].convert("RGBA")
    before = image.tobytes()
    latents("width", image)
    assert (image.mode, image.tobytes()) == ("RGBA", before)
    assert as_rgb(image).mode == "RGB" and tiny_images(1).shape == (1, 3, 32, 32)
