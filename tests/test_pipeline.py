"""The pipeline: what a call returns, that it can be repeated, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oNext, Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.diffusion import FlowHead, PixelCodec, TokenDecoderHead
from blip3o.settings import GenerationDefaults
from tests.tiny import PLAIN, generators, tiny_ar, tiny_dcae, tiny_dit, tiny_sana, tiny_tokenizer

PROMPTS = ["a red circle left of a blue square", "two green triangles", "a circle"]


class ElsewhereGenerator(torch.Generator):
    """A generator that says it is on another device than the model."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(tiny_pipe: Blip3oPipeline) -> None:
    first, again, other = (tiny_pipe(PROMPTS, generator=seeded(seed), output_type="np") for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert torch.equal(first.token_ids, again.token_ids)
    assert not np.array_equal(first.images, other.images)
    assert not torch.equal(first.token_ids, other.token_ids)


def test_other_prompts_give_other_pictures(tiny_pipe: Blip3oPipeline) -> None:
    one, other = (tiny_pipe(prompt, generator=seeded(), output_type="np").images for prompt in PROMPTS[:2])
    assert not np.allclose(one, other, atol=1e-3)


def test_every_output_type_shows_the_same_pictures(tiny_pipe: Blip3oPipeline) -> None:
    pil, array, tensor, latents = (
        tiny_pipe(PROMPTS, generator=generators(3), output_type=kind).images for kind in ("pil", "np", "pt", "latent")
    )
    assert [type(image) for image in pil] == [Image.Image] * 3
    assert {(image.size, image.mode) for image in pil} == {((32, 32), "RGB")}
    assert array.shape == (3, 32, 32, 3) and array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), np.rint(array * 255).astype(np.uint8))
    assert torch.equal(tensor, torch.from_numpy(array).movedim(-1, 1))
    assert latents.shape == (3, 48, 8, 8)
    assert torch.allclose((tiny_pipe.model.diffusion.decode(latents) + 1) / 2, tensor, atol=1e-6)


def test_token_ids_are_one_row_an_image(tiny_pipe: Blip3oPipeline) -> None:
    ids = tiny_pipe(PROMPTS, generator=seeded()).token_ids
    assert ids.shape == (3, 16) and ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 64


def test_images_of_a_prompt_come_one_after_another(tiny_pipe: Blip3oPipeline) -> None:
    twice = tiny_pipe(PROMPTS[:2], num_images_per_prompt=2, generator=generators(4), output_type="np")
    spelt_out = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert np.array_equal(twice.images, tiny_pipe(spelt_out, generator=generators(4), output_type="np").images)
    assert not np.array_equal(twice.images[0], twice.images[1])


def test_with_a_generator_each_an_image_does_not_depend_on_its_batch(tiny_pipe: Blip3oPipeline) -> None:
    together = tiny_pipe(PROMPTS, generator=generators(3), output_type="np")
    for index, prompt in enumerate(PROMPTS):
        alone = tiny_pipe(prompt, generator=[seeded(index)], output_type="np")
        assert torch.equal(alone.token_ids[0], together.token_ids[index])
        assert np.allclose(alone.images[0], together.images[index], atol=1e-4)


def test_a_generator_keeps_the_global_one_untouched(tiny_pipe: Blip3oPipeline) -> None:
    before = torch.get_rng_state()
    tiny_pipe(PROMPTS, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_latents_replace_the_drawn_noise(tiny_pipe: Blip3oPipeline) -> None:
    noise = torch.randn(2, 1, 48, 8, 8, generator=seeded())
    one, again, other = (
        tiny_pipe("a circle", temperature=0, latents=latents, output_type="np").images
        for latents in (noise[0], noise[0], noise[1])
    )
    assert np.array_equal(one, again) and not np.allclose(one, other, atol=1e-3)


def test_settings_change_the_picture(tiny_pipe: Blip3oPipeline) -> None:
    plain = tiny_pipe("a circle", generator=seeded(), output_type="np").images
    for setting in ({"num_inference_steps": 3}, {"guidance_scale": 0}, {"token_guidance_scale": 3.0}, {"top_p": 0.1}):
        changed = tiny_pipe("a circle", generator=seeded(), output_type="np", **setting).images  # type: ignore[arg-type]
        assert not np.array_equal(plain, changed), setting


def test_guidance_intervals_reach_the_head_from_a_call_and_from_a_stored_model(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    def drawn(pipe: Blip3oPipeline, **given: Any) -> np.ndarray:
        return pipe("a circle", generator=seeded(), output_type="np", num_inference_steps=4, **given).images

    plain, limited = drawn(tiny_pipe), drawn(tiny_pipe, guidance_interval=(0.6, 0.95))
    assert not np.array_equal(plain, limited)
    assert np.array_equal(plain, drawn(tiny_pipe, guidance_interval=(0, 1), step_cache=0))
    stored = replace(tiny_pipe.defaults, guidance_interval=(0.6, 0.95))
    folder = Blip3oPipeline(tiny_pipe.model, stored).save_pretrained(tmp_path / "model")
    again = Blip3oPipeline.from_pretrained(folder)
    assert again.defaults == stored
    assert np.array_equal(limited, drawn(again)) and np.array_equal(plain, drawn(again, guidance_interval=(0, 1)))


def test_a_step_cache_reaches_the_head() -> None:
    head = FlowHead(tiny_dit(depth=3), PixelCodec(patch_size=4), image_size=32)
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, head, PLAIN).eval()
    given: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 6}
    plain, cached = (
        Blip3oPipeline(model, GenerationDefaults(step_cache=share))("a circle", generator=seeded(), **given).latents
        for share in (None, 1.0)
    )
    called = Blip3oPipeline(model)("a circle", generator=seeded(), step_cache=1.0, **given).latents
    assert torch.equal(cached, called) and not torch.equal(cached, plain)


def test_tiles_are_for_codecs_that_have_them(tiny_pipe: Blip3oPipeline) -> None:
    with pytest.raises(ValueError, match="PixelCodec works on no tiles"):
        tiny_pipe.enable_tiling()
    head = FlowHead(tiny_sana(), tiny_dcae(), image_size=32)
    pipe = Blip3oPipeline(Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, head, PLAIN))
    assert pipe.enable_tiling() is pipe and head.codec.vae.use_tiling
    bare = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, TokenDecoderHead(image_size=32), PLAIN)
    with pytest.raises(ValueError, match="TokenDecoderHead has no codec"):
        Blip3oPipeline(bare).enable_tiling()


NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"prompt": ""}, ["prompt ('')", "at least one word"]),
    ({"prompt": " \n"}, ["prompt (' \\n')", "at least one word"]),
    ({"prompt": []}, ["prompt ([])", "at least one prompt"]),
    ({"prompt": ["a circle", ""]}, ["prompt ('')", "at least one word"]),
    ({"prompt": 3}, ["prompt (3)", "must be a string"]),
    ({"prompt": None}, ["prompt (None)", "must be a string"]),
    ({"prompt": "a pink circle"}, ["prompt ('a pink circle')", "does not know", "['pink']"]),
    ({"prompt": ["a circle", 5]}, ["prompt (5)", "must be a string"]),
    ({"prompt": "a circle and " * 40}, ["prompt (12", "holds 96", "shorten the prompt"]),
    *(({"num_inference_steps": n}, [f"num_inference_steps ({n!r})", "whole number"]) for n in (0, -1, 2.5, "5", True)),
    ({"num_images_per_prompt": 0}, ["num_images_per_prompt (0)", "at least 1"]),
    ({"num_images_per_prompt": 1.5}, ["num_images_per_prompt (1.5)", "whole number"]),
    ({"guidance_scale": -1}, ["guidance_scale (-1)", "1 turns guidance off"]),
    ({"token_guidance_scale": -0.5}, ["token_guidance_scale (-0.5)", "1 turns guidance off"]),
    *(({"guidance_scale": x}, [f"guidance_scale ({x!r})", "finite number"]) for x in (NAN, INF, "2")),
    *(({"temperature": x}, [f"temperature ({x!r})", "finite number"]) for x in (NAN, INF)),
    ({"temperature": -1.0}, ["temperature (-1.0)", "0 takes the most likely"]),
    ({"top_k": -1}, ["top_k (-1)", "at least 0"]),
    ({"top_k": 1.5}, ["top_k (1.5)", "whole number"]),
    *(({"top_p": x}, [f"top_p ({x!r})", "(0, 1]"]) for x in (0.0, 1.5)),
    ({"guidance_interval": (0.9, 0.1)}, ["guidance_interval ((0.9, 0.1))", "0 <= low < high <= 1"]),
    ({"guidance_interval": 0.5}, ["guidance_interval (0.5)", "two noise levels"]),
    ({"step_cache": -1}, ["step_cache (-1)", "at least 0"]),
    ({"step_cache": 0.1}, ["step_cache (0.1)", "this DiT has none"]),
    ({"output_type": "jpg"}, ["output_type ('jpg')", "'pil', 'np', 'pt' or 'latent'"]),
    ({"generator": generators(1)}, ["generator holds 1 generators for 2 images", "one an image"]),
    ({"generator": 7}, ["generator (7)", "torch.Generator().manual_seed"]),
    ({"generator": [0, 1]}, ["generator (0)", "torch.Generator().manual_seed"]),
    ({"generator": ElsewhereGenerator()}, ["generator is on cuda, the model on cpu", "create it on the CPU"]),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ["latents has shape (2, 4, 8, 8)", "(2, 48, 8, 8)"]),
    ({"latents": torch.zeros(1, 48, 8, 8)}, ["latents holds 1 rows for 2 images", "give one an image"]),
    ({"latents": torch.zeros(48, 8, 8)}, ["latents (torch.float32, (48, 8, 8))", "(images, c, h, w)"]),
    ({"latents": np.zeros((2, 48, 8, 8))[:0]}, ["latents (array", "floating tensor"]),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=[str(a)[:50] for a, _ in REFUSED])
def test_bad_input_is_refused_by_name_value_and_remedy(
    tiny_pipe: Blip3oPipeline, arguments: dict[str, Any], told: list[str]
) -> None:
    call = {"prompt": ["a circle", "a square"], **arguments}
    with pytest.raises(ValueError) as error:
        tiny_pipe(call.pop("prompt"), **call)
    for words in told:
        assert words in str(error.value)


def test_a_refused_call_draws_nothing(tiny_pipe: Blip3oPipeline) -> None:
    generator = seeded()
    before = generator.get_state()
    for bad in ({"guidance_scale": NAN}, {"num_inference_steps": 0}, {"latents": torch.zeros(2, 48, 8, 8)}):
        with pytest.raises(ValueError):
            tiny_pipe("a circle", generator=generator, **bad)  # type: ignore[arg-type]
    assert torch.equal(before, generator.get_state())
