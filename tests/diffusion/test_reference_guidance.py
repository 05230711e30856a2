"""Guidance by text and by references: the formula of InstructPix2Pix, in every way that a head sees references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.diffusion import DDIM, Codec, Denoiser, FlowHead, FlowMatchHeun, PixelCodec, TokenDecoderHead, VPrediction
from blip3o.diffusion.base import DiffusionHead
from blip3o.diffusion.guidance import ReferenceGuidance
from blip3o.structures import Conditioning
from tests.diffusion.contract import condition
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sd3 import sd3
from tests.tiny import generators, perturbed, tiny_dcae, tiny_dit, tiny_images, tiny_sana

WAYS = {"width": ("width", 0), "channels": ("channels", 0), "appended": (None, 5), "both": ("width", 5)}
"""How the head sees references: in noise space, and by how many positions after the condition."""
TEXT, NO_TEXT, IMAGE = 0.7, -0.4, 0.3


class Analytic(Denoiser):
    """tanh(latents + reference / 2) (1 + text) (1 + image): no branch is a sum of what the others know."""

    latent_channels = property(lambda self: 12)
    cond_dim = property(lambda self: 4)

    def __init__(self, *, wide: bool = False) -> None:
        super().__init__()
        self.wide = wide
        self.rows: list[int] = []

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows.append(len(latents))
        kept = conditioning.embeds.shape[1] - conditioning.num_appended
        text = conditioning.embeds[:, :kept].mean(dim=(1, 2))[:, None, None, None]
        image = conditioning.embeds[:, kept:].sum(dim=(1, 2))[:, None, None, None] / 20
        if not self.wide:
            return torch.tanh(latents) * (1 + text) * (1 + image)
        target, beside = latents.chunk(2, dim=3)
        return torch.cat([torch.tanh(target + beside / 2) * (1 + text) * (1 + image)] * 2, dim=3)


def said(text: float, image: float, appended: int) -> Conditioning:
    """Two rows of 3 positions of the text, and others of the image after it."""
    given = Conditioning(torch.full((2, 3, 4), text))
    return given.followed_by(torch.full((2, appended, 4), image)) if appended else given


def analytic(way: str) -> tuple[FlowHead, Analytic, dict[str, Any]]:
    """A head, its denoiser, and what `sample` is given besides the scales."""
    reference, appended = WAYS[way]
    denoiser = Analytic(wide=reference == "width")
    head = FlowHead(denoiser, PixelCodec(2), image_size=32, reference=reference)  # type: ignore[arg-type]
    if reference == "channels":
        assert head.reference_proj is not None and head.reference_proj.bias is not None
        eye = torch.eye(12)[:, :, None, None]
        head.reference_proj.weight.data = torch.cat([eye, eye / 2], dim=1)
        head.reference_proj.bias.data.zero_()
    given: dict[str, Any] = {
        "conditioning": said(TEXT, IMAGE, appended),
        "negative": said(NO_TEXT, 0.0, appended),
        "references": None if reference is None else tiny_images(2)[:, None],
        "latents": torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0)),
    }
    return head, denoiser, given


def branches(way: str, head: FlowHead, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the denoiser should say with neither, with references alone, and with both."""
    reference, appended = WAYS[way]
    beside = torch.zeros_like(noise) if reference is None else head.encode(tiny_images(2))
    image = IMAGE if appended else 0.0
    neither = torch.tanh(noise) * (1 + NO_TEXT)
    references = torch.tanh(noise + beside / 2) * (1 + NO_TEXT) * (1 + image)
    return neither, references, torch.tanh(noise + beside / 2) * (1 + TEXT) * (1 + image)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("scale", "image_scale"), [(2.0, 1.5), (0.0, 3.0), (7.5, 0.0), (1.0, 2.0), (3.0, 1.0)])
def test_the_prediction_is_instruct_pix2pixs(way: str, scale: float, image_scale: float) -> None:
    head, denoiser, given = analytic(way)
    sampled = head.sample(num_inference_steps=1, guidance_scale=scale, image_guidance_scale=image_scale, **given)
    neither, references, both = branches(way, head, given["latents"])
    expected = neither + image_scale * (references - neither) + scale * (both - references)
    torch.testing.assert_close(given["latents"] - sampled, expected, rtol=1e-5, atol=1e-5)
    assert denoiser.rows == [4 if image_scale == 1 else 6], "all branches in one batch, none of no weight"


@pytest.mark.parametrize("way", WAYS)
def test_without_an_image_scale_guidance_is_the_published_one(way: str) -> None:
    head, denoiser, given = analytic(way)
    sampled = head.sample(num_inference_steps=1, guidance_scale=2.0, **given)
    _, references, both = branches(way, head, given["latents"])
    negative = references / (1 + IMAGE) if WAYS[way][1] else references  # noise space stays, what is appended goes
    torch.testing.assert_close(given["latents"] - sampled, negative + 2 * (both - negative), rtol=1e-5, atol=1e-5)
    assert denoiser.rows == [4]
    once = head.sample(num_inference_steps=1, guidance_scale=1.0, image_guidance_scale=1.0, **given)
    assert denoiser.rows == [4, 2]
    assert torch.equal(once, head.sample(num_inference_steps=1, guidance_scale=1.0, **given))


@pytest.mark.parametrize("way", ["width", "channels"])
def test_in_noise_space_alone_an_image_scale_of_one_is_the_published_guidance_bit_for_bit(way: str) -> None:
    head, _, given = analytic(way)
    one = head.sample(num_inference_steps=3, guidance_scale=2.0, **given)
    assert torch.equal(one, head.sample(num_inference_steps=3, guidance_scale=2.0, image_guidance_scale=1.0, **given))


def test_after_the_condition_alone_equal_scales_are_the_published_guidance() -> None:
    head, _, given = analytic("appended")
    one = head.sample(num_inference_steps=3, guidance_scale=2.0, **given)
    other = head.sample(num_inference_steps=3, guidance_scale=2.0, image_guidance_scale=2.0, **given)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["heun", "v-prediction"])
def test_other_samplers_and_objectives_take_three_branches(kind: str) -> None:
    _, denoiser, given = analytic("width")
    parts: dict[str, Any] = (
        {"sampler": FlowMatchHeun()} if kind == "heun" else {"objective": VPrediction(), "sampler": DDIM()}
    )
    head = FlowHead(denoiser, PixelCodec(2), image_size=32, reference="width", **parts)
    scales = {"guidance_scale": 2.0, "image_guidance_scale": 1.5}
    sampled = head.sample(num_inference_steps=3, **scales, **given)
    assert denoiser.rows == [6, 6, 6] and sampled.isfinite().all()
    assert not torch.equal(sampled, head.sample(num_inference_steps=3, guidance_scale=2.0, **given))


SANA = {"in_channels": 48, "out_channels": 48}
DENOISERS: dict[str, tuple[Callable[[], Denoiser], Callable[[], Codec], list[Any]]] = {
    "dit": (lambda: tiny_dit(cond_grid=4), lambda: PixelCodec(4), ["channels", None]),
    "sana": (lambda: perturbed(tiny_sana(**SANA)).eval(), lambda: PixelCodec(4), ["width", "channels", None]),
    "pixart": (tiny_pixart, tiny_dcae, ["width", "channels", None]),
    "lumina2": (lambda: tiny_lumina2(axes_lens=[96, 8, 8]), tiny_dcae, ["width", "channels", None]),
    "sd3": (lambda: perturbed(sd3(pos_embed_max_size=16)).eval(), tiny_dcae, ["width", "channels", None]),
}
CASES = [(name, reference) for name, (_, _, ways) in DENOISERS.items() for reference in ways]


@pytest.mark.parametrize(("name", "reference"), CASES)
def test_every_denoiser_takes_three_branches_in_one_batch(name: str, reference: Any) -> None:
    """With latents after the condition too, as many as those of one image."""
    build, codec, _ = DENOISERS[name]
    head = perturbed(FlowHead(build(), codec(), image_size=32, reference=reference)).eval()
    cond = condition(24).followed_by(condition(24, positions=64, seed=5).embeds)
    negative = condition(24, seed=12).followed_by(torch.zeros(2, 64, 24))
    references = None if reference is None else tiny_images(2)[:, None]
    noise = torch.randn(2, *head.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.ones(2)
    with torch.no_grad():
        beside = None if references is None else head.encode(references[:, 0])
        nothing = None if beside is None else torch.zeros_like(beside)
        neither = head._predict(noise, sigma, negative, nothing)
        alone = head._predict(noise, sigma, negative.with_appended_of(cond), beside)
        both = head._predict(noise, sigma, cond, beside)
        sampled = head.sample(
            cond,
            num_inference_steps=1,
            guidance_scale=2.0,
            image_guidance_scale=1.5,
            negative=negative,
            references=references,
            latents=noise,
        )
    assert min((neither - alone).abs().max(), (alone - both).abs().max()) > 1e-3
    expected = neither + 1.5 * (alone - neither) + 2 * (both - alone)
    torch.testing.assert_close(noise - sampled, expected, rtol=1e-3, atol=1e-3)


def test_masks_of_the_condition_are_each_branchs_own() -> None:
    cond = Conditioning(torch.ones(1, 2, 3), torch.tensor([[True, False]])).followed_by(torch.full((1, 1, 3), 2.0))
    negative = Conditioning(torch.zeros(1, 2, 3), torch.tensor([[True, True]])).followed_by(torch.zeros(1, 1, 3))
    seen: list[Conditioning] = []

    def denoiser(latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(conditioning)
        return latents

    ReferenceGuidance(denoiser, cond, negative, 2.0, 3.0)(torch.ones(1, 1, 1, 1), torch.ones(1))
    assert seen[0].mask is not None
    assert seen[0].mask.tolist() == [[True, True, True], [True, True, True], [True, False, True]]
    assert seen[0].embeds[:, :, 0].tolist() == [[0, 0, 0], [0, 0, 2], [1, 1, 2]]


def test_impossible_calls_are_refused() -> None:
    head, _, given = analytic("appended")
    scales = {"guidance_scale": 2.0, "image_guidance_scale": 1.5}
    plain = given | {"conditioning": said(TEXT, 0.0, 0), "negative": said(NO_TEXT, 0.0, 0)}
    with pytest.raises(ValueError, match=r"image_guidance_scale \(1.5\) needs references that the head sees"):
        head.sample(num_inference_steps=1, **scales, **plain)
    with pytest.raises(ValueError, match=r"image_guidance_scale \(1.5\) needs a negative condition"):
        head.sample(num_inference_steps=1, **scales, **(given | {"negative": None}))
    with pytest.raises(ValueError, match=r"image_guidance_scale \(-1.0\) must be at least 0"):
        head.sample(num_inference_steps=1, guidance_scale=2.0, image_guidance_scale=-1.0, **given)
    token_head = TokenDecoderHead(image_size=32)
    with pytest.raises(ValueError, match=r"image_guidance_scale \(1.5\) needs references"):
        token_head.sample(condition(8), num_inference_steps=1, image_guidance_scale=1.5, pictures=tiny_images(2))


@pytest.mark.parametrize("way", ["width", "channels"])
def test_a_row_whose_references_are_hidden_trains_as_with_zeros_for_their_latents(way: str) -> None:
    head, _, given = analytic(way)
    images, references = tiny_images(2, seed=3), given["references"]

    def loss(references: Tensor, hidden: list[bool] | None) -> Tensor:
        return head.loss(
            images,
            given["conditioning"],
            references,
            generators(2),
            hidden=None if hidden is None else torch.tensor(hidden),
        )

    one, grey = loss(references, [True, False]), loss(torch.zeros_like(references), None)
    assert torch.equal(one[0], grey[0]), "latents of pixels are zero where the pixels are"
    assert torch.equal(one[1], loss(references, None)[1]) and not torch.equal(one[1], grey[1])


SIZES: list[tuple[str, Any, tuple[int, int], tuple[int, int]]] = [
    ("dit", None, (40, 80), (32, 32)),
    ("dit", "channels", (80, 40), (32, 32)),
    ("sana", None, (40, 80), (24, 44)),
    ("sana", "width", (80, 40), (44, 24)),
    ("sana", None, (500, 500), (32, 32)),
    ("sana", None, (40, 41), (32, 32)),
    ("pixart", "channels", (40, 80), (24, 48)),
    ("lumina2", None, (40, 80), (24, 48)),
    ("lumina2", None, (40, 300), (32, 32)),
    ("sd3", None, (40, 80), (24, 48)),
    ("sd3", "width", (100, 300), (16, 56)),
]


@pytest.mark.parametrize(("name", "reference", "picture", "size"), SIZES)
def test_proportions_are_kept_where_the_denoiser_can(
    name: str, reference: Any, picture: tuple[int, int], size: tuple[int, int]
) -> None:
    build, codec, _ = DENOISERS[name]
    head = FlowHead(build(), codec(), image_size=32, reference=reference).eval()
    assert head.size_for(*picture) == size
    references = None if reference is None else torch.zeros(2, 1, 3, *size)
    with torch.no_grad():
        latents = head.sample(
            condition(24), num_inference_steps=1, generator=generators(2), references=references, size=size
        )
        assert head.decode(latents).shape == (2, 3, *size)


def test_sizes_that_can_not_be_rendered_are_refused() -> None:
    head = FlowHead(tiny_dit(cond_grid=4), PixelCodec(4), image_size=32, reference="channels")
    given: dict[str, Any] = {"num_inference_steps": 1, "generator": generators(2)}
    with pytest.raises(ValueError, match=r"size \(\(30, 32\)\) must be multiples of .* \(4\)"):
        head.sample(condition(24), size=(30, 32), **given)
    with pytest.raises(ValueError, match=r"size \(\(16, 64\)\) can not be rendered: latent_size \(8 x 8\) is not"):
        head.sample(condition(24), size=(16, 64), **given)
    with pytest.raises(ValueError, match=r"references has shape .* but the image to render is \(32, 32\); resize"):
        head.sample(condition(24), references=torch.zeros(2, 1, 3, 16, 16), **given)
    other: DiffusionHead = TokenDecoderHead(image_size=32)
    assert other.size_for(10, 99) == (32, 32)
    with pytest.raises(ValueError, match=r"size \(\(16, 64\)\) must be 32 x 32"):
        other.sample(condition(8), size=(16, 64), **given)
