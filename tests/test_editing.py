"""Reference images: every way they reach the model changes what it makes, and what does not fit is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.diffusion import DiT, FlowHead, PixelCodec, Sana
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.pixels import to_uint8
from tests.tiny import PLAIN_EDITS, generators, perturbed, seeded, tiny_ar, tiny_images, tiny_sana
from tests.tokenizers.test_ta_tok import tiny_ta_tok

ROUTES: dict[str, dict[str, Any]] = {
    "tokens": {},
    "features": {"reference_features": MLPBridge},
    "latents": {"reference_latents": MLPBridge},
    "width": {"reference": "width"},
    "channels": {"reference": "channels"},
    "all": {"reference_features": MLPBridge, "reference_latents": MLPBridge, "reference": "width"},
}
INSTRUCTIONS = ["a red circle", "a circle and a square"]


@cache
def pipeline(route: str) -> Blip3oPipeline:
    """A tiny model over SANA, whose grid may be of any size; TA-Tok reads 28 pixels, the head renders 32."""
    arguments = dict(ROUTES[route])
    with seeded(0):
        denoiser = Sana(tiny_sana(in_channels=12, out_channels=12).init_args["config"])
        head = FlowHead(denoiser, PixelCodec(patch_size=2), image_size=32, reference=arguments.pop("reference", None))
        model = Blip3oNext(tiny_ta_tok(), tiny_ar(), MLPBridge, head, PLAIN_EDITS, **arguments)
    perturbed(model, std=0.2)
    return Blip3oPipeline(model, GenerationDefaults(num_inference_steps=2, top_k=0))


def pictures(count: int = 2, seed: int = 0) -> list[Image.Image]:
    return [Image.fromarray(array).resize((40, 48)) for array in to_uint8(tiny_images(count, seed))]


def edited(route: str, image: Any, prompt: str | list[str] = INSTRUCTIONS[0], **given: Any) -> Tensor:
    rows = 1 if isinstance(prompt, str) else len(prompt)
    return pipeline(route)(prompt, image=image, generator=generators(rows), output_type="latent", **given).latents


@pytest.mark.parametrize("route", ROUTES)
def test_the_reference_matters_and_each_row_has_what_it_has_alone(route: str) -> None:
    first, second = pictures()
    one, other = edited(route, first), edited(route, second)
    assert (one - other).abs().max() > 1e-3
    batch = edited(route, [first, second], [INSTRUCTIONS[0]] * 2)
    torch.testing.assert_close(batch[:1], one, rtol=0, atol=1e-4)
    plain = pipeline(route)(INSTRUCTIONS[0], generator=generators(1), output_type="latent").latents
    assert (edited(route, first, aspect="square") - plain).abs().max() > 1e-3


@pytest.mark.parametrize("route", ["features", "latents", "width", "channels"])
def test_each_route_carries_what_the_tokens_alone_do_not(route: str) -> None:
    """With the same ids in the prompt, a change of the reference that the ids do not show still shows."""
    model = pipeline(route).model
    references = tiny_images(1)[:, None]
    small = torch.nn.functional.interpolate(references[0], size=(28, 28))[None]
    nudged_small = small + 1e-4 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.tokenizer.encode(small[0]).ids, model.tokenizer.encode(nudged_small[0]).ids)
    given: dict[str, Any] = {"num_inference_steps": 2}
    one = model.generate(["a circle"], references=references, token_references=small, generator=generators(1), **given)
    two = model.generate(
        ["a circle"],
        references=references.flip(-1),
        token_references=nudged_small,
        generator=generators(1),
        **given,
    )
    assert not torch.equal(one.latents, two.latents)


def test_instructions_of_several_lengths_are_padded_and_masked() -> None:
    image = pictures()
    batch = edited("all", image, INSTRUCTIONS)
    for row, instruction in enumerate(INSTRUCTIONS):
        pipe = pipeline("all")
        alone = pipe(instruction, image=image[row], generator=[generators(2)[row]], output_type="latent").latents
        torch.testing.assert_close(batch[row], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("route", ["tokens", "features", "latents"])
def test_up_to_four_references(route: str) -> None:
    many = pictures(4)
    latents = [edited(route, many[:count]) for count in (1, 2, 4)]
    assert (latents[0] - latents[1]).abs().max() > 1e-3
    assert (latents[1] - latents[2]).abs().max() > 1e-3
    torch.testing.assert_close(latents[0], edited(route, many[0]))
    with pytest.raises(ValueError, match=r"image holds \[5\] pictures; give 1 to 4"):
        edited(route, pictures(5))


@pytest.mark.parametrize("route", ["width", "channels"])
def test_noise_space_takes_one_reference_and_says_so(route: str) -> None:
    generator = generators(1)[0]
    before = generator.get_state()
    with pytest.raises(
        ValueError, match=rf"holds 2 images a row, but reference='{route}' takes one; give one, or build"
    ):
        pipeline(route)(INSTRUCTIONS[0], image=pictures(2), generator=generator)
    assert torch.equal(before, generator.get_state()), "nothing was drawn"


@pytest.mark.parametrize(
    ("image", "prompt", "told"),
    [
        ("cat.png", "a circle", "must be a PIL image"),
        ([], "a circle", r"image holds \[0\] pictures"),
        (pictures(1)[0], ["a circle", "a square"], "for each of the 2 prompts"),
        (pictures(3), ["a circle", "a square"], "for each of the 2 prompts; a list of 3 was given"),
        ([pictures(2), pictures(1)], ["a circle", "a square"], r"image holds \[2, 1\] pictures"),
    ],
)
def test_images_that_do_not_fit_the_prompts_are_refused(image: Any, prompt: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        edited("tokens", image, prompt)


@pytest.mark.parametrize("route", ["all", "channels"])
def test_training_on_references_reaches_their_bridges(route: str) -> None:
    model = pipeline(route).model
    images = tiny_images(2)
    small = torch.nn.functional.interpolate(images, size=(28, 28))
    model.zero_grad()
    losses = model.losses(
        images,
        INSTRUCTIONS,
        token_images=small,
        references=images.flip(-1)[:, None],
        token_references=small.flip(-1)[:, None],
        generator=generators(2),
    )
    (losses.cross_entropy + losses.flow.sum()).backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained >= {"ar", "bridge", "diffusion"} | {name for name in model.parts() if name.startswith("reference")}
    model.zero_grad()


def test_dropped_rows_lose_the_projected_latents_too() -> None:
    model = pipeline("latents").model
    images, references = tiny_images(2), tiny_images(2, seed=3)[:, None]
    small = torch.nn.functional.interpolate(images, size=(28, 28))

    def flow(references: Tensor) -> Tensor:
        return model.losses(
            images,
            INSTRUCTIONS,
            token_images=small,
            references=references,
            token_references=small[:, None],
            dropped=torch.tensor([True, False]),
            generator=generators(2),
        ).flow

    one, other = flow(references), flow(references.flip(-1))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_models_that_can_not_take_references_as_asked_are_refused() -> None:
    from tests.tiny import tiny_head, tiny_tokenizer

    with pytest.raises(ValueError, match="reference_features needs a tokenizer with continuous features"):
        Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, tiny_head(), PLAIN_EDITS, reference_features=MLPBridge)
    with pytest.raises(ValueError, match=r"reference \('height'\) must be 'width', 'channels' or None"):
        FlowHead(DiT(latent_channels=12, latent_size=16), PixelCodec(2), image_size=32, reference="height")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can not be used with inputs_embeds"):
        pipeline("features")("a circle", image=pictures(1)[0], token_guidance_scale=2.0)
