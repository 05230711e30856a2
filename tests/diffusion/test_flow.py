"""FlowMatching and FlowHead: levels and paths against their formulas, sampling against a denoiser that knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.diffusion import Codec, Denoiser, FlowHead, FlowMatching, PixelCodec
from blip3o.structures import Conditioning
from tests.diffusion.contract import DiffusionHeadContract, condition
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sd3 import sd3
from tests.tiny import generators, perturbed, tiny_dcae, tiny_dit, tiny_head, tiny_images, tiny_sana


class TestDiTOnPixels(DiffusionHeadContract):
    def head(self) -> FlowHead:
        return tiny_head(tiny_dit(cond_grid=4))


class TestSanaOnDCAE(DiffusionHeadContract):
    def head(self) -> FlowHead:
        return tiny_head(perturbed(tiny_sana()), tiny_dcae()).eval()


class Knows(Denoiser):
    """Predicts the velocity that leads straight to `target`, and keeps the noise levels it was asked at."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.channels = channels
        self.target = torch.zeros(())
        self.asked: list[float] = []

    latent_channels = property(lambda self: self.channels)
    cond_dim = property(lambda self: 24)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.asked.append(sigma[0].item())
        return (latents - self.target) / sigma[:, None, None, None]


def shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_the_table_holds_a_thousand_shifted_levels(shift: float) -> None:
    levels = FlowMatching(shift=shift).levels
    assert levels.shape == (1000,)
    torch.testing.assert_close(levels, shifted(1 - torch.arange(1000) / 1000, shift), rtol=1e-5, atol=1e-6)
    assert levels[0] == 1 and (levels.diff() < 0).all() and levels[-1] > 0


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_levels_are_looked_up_at_the_floor_of_a_thousand_u(density: str) -> None:
    objective = FlowMatching(shift=3.0, density=density)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(0)
    u = torch.rand(500, generator=source) if density == "uniform" else torch.randn(500, generator=source).sigmoid()
    drawn = objective.draw_levels(500, torch.Generator().manual_seed(0), torch.device("cpu"))
    torch.testing.assert_close(drawn, shifted(1 - (u * 1000).floor() / 1000, 3.0), rtol=1e-5, atol=1e-6)


def test_levels_of_a_list_of_generators_are_each_rows_own() -> None:
    objective = FlowMatching()
    device = torch.device("cpu")
    together = objective.draw_levels(3, generators(3), device)
    alone = [objective.draw_levels(1, generators(1, first_seed=seed), device) for seed in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique()) == 3


def test_the_target_is_the_derivative_of_the_path() -> None:
    latents, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.3, 0.8], dtype=torch.float64)
    moved = FlowMatching.add_noise(latents, noise, sigma + 1e-4) - FlowMatching.add_noise(latents, noise, sigma)
    torch.testing.assert_close(moved / 1e-4, FlowMatching.target(latents, noise))
    assert torch.equal(FlowMatching.add_noise(latents, noise, torch.zeros(2)), latents)
    assert torch.equal(FlowMatching.add_noise(latents, noise, torch.ones(2)), noise)


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (4, 1.0), (7, 3.0)])
def test_a_denoiser_that_knows_the_image_leads_to_it(steps: int, shift: float) -> None:
    denoiser = Knows()
    head = tiny_head(denoiser, PixelCodec(4), shift=shift)
    images = tiny_images(2)
    denoiser.target = head.encode(images)
    latents = head.sample(condition(24), num_inference_steps=steps, generator=generators(2))
    torch.testing.assert_close(head.decode(latents), images, rtol=0, atol=1e-5)
    expected = shifted(torch.linspace(1, 1 / steps, steps), shift)
    torch.testing.assert_close(torch.tensor(denoiser.asked), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_denoiser_that_knows_the_image_is_zero() -> None:
    denoiser = Knows()
    head = tiny_head(denoiser, PixelCodec(4))
    denoiser.target = head.encode(tiny_images(2))
    known = head.loss(tiny_images(2), condition(24), generator=generators(2))
    assert known.max() < 1e-6
    denoiser.target = denoiser.target + 0.5
    assert head.loss(tiny_images(2), condition(24), generator=generators(2)).min() > 0.1


def test_the_loss_is_the_mean_squared_error_of_the_velocity() -> None:
    """Levels first, then noise, from each row's generator."""
    head, images, cond = TestDiTOnPixels().head(), tiny_images(2), condition(24)
    loss = head.loss(images, cond, generator=generators(2))
    for row, generator in enumerate(generators(2)):
        sigma = head.objective.levels[(torch.rand(1, generator=generator) * 1000).long()]
        latents = head.encode(images[row : row + 1])
        noise = torch.randn(latents.shape, generator=generator)
        velocity = head.denoiser((1 - sigma) * latents + sigma * noise, sigma, cond[row : row + 1])
        torch.testing.assert_close(loss[row], (velocity - (noise - latents)).square().mean())


def test_the_codec_gets_no_gradient_from_the_loss() -> None:
    head = TestSanaOnDCAE().head()
    head.loss(tiny_images(2), condition(24), generator=generators(2)).sum().backward()
    assert all(p.grad is None for p in head.codec.parameters())
    assert any(p.grad is not None for p in head.denoiser.parameters())


@pytest.mark.parametrize("case", [TestDiTOnPixels, TestSanaOnDCAE], ids=["dit", "sana"])
def test_the_loss_on_one_batch_falls_by_half(case: type[DiffusionHeadContract]) -> None:
    head = case().head()
    images, cond = tiny_images(2), condition(24)
    optimizer = torch.optim.AdamW(head.denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = head.loss(images, cond, generator=generators(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_parts_that_do_not_fit_are_refused() -> None:
    for wrong in (0, 30):
        with pytest.raises(ValueError, match=rf"image_size \({wrong}\)"):
            FlowHead(tiny_dit(), PixelCodec(4), image_size=wrong)
    with pytest.raises(ValueError, match=r"shift \(0\.0\)"):
        FlowMatching(shift=0.0)
    with pytest.raises(ValueError, match="density"):
        FlowMatching(density="normal")  # type: ignore[arg-type]


FITTING = r"denoiser \({}\) and codec \(\w+, {} pixels a latent\) do not fit at image_size \({}\){}: .*{}"


@pytest.mark.parametrize(
    ("denoiser", "codec", "size", "reference", "told"),
    [
        (tiny_dit, PixelCodec(2), 32, None, "48 latent channels, but the codec gives 12; set"),
        (tiny_dit, PixelCodec(4), 64, None, r"latent_size \(8 x 8\) is not that of 16 x 16 latents; set it to 16"),
        (tiny_dit, PixelCodec(4), 32, "width", r"latent_size \(8 x 8\) is not .* 8 x 16 latents; set it to \[8, 16\]"),
        (lambda: tiny_dit(latent_size=(8, 16)), PixelCodec(4), 32, "width", None),
        (tiny_lumina2, tiny_dcae(), 68, None, r"patch_size \(2\) must divide 17 x 17 latents; change"),
        (tiny_lumina2, tiny_dcae(), 32, "width", None),
        (tiny_lumina2, tiny_dcae(), 64, "width", r"axes_lens \(\[32, 8, 8\]\) .* 8 x 16 patches; .* \[32, 8, 16\]"),
        (sd3, tiny_dcae(), 64, None, None),
        (sd3, tiny_dcae(), 64, "width", r"pos_embed_max_size \(8\) is too small for 16 x 32 .* set it to at least 16"),
        (tiny_pixart, tiny_dcae(), 36, None, r"patch_size \(2\) must divide 9 x 9 latents; change"),
        (lambda: tiny_sana(patch_size=2), tiny_dcae(), 36, None, r"patch_size \(2\) must divide 9 x 9 latents"),
        (tiny_sana, tiny_dcae(), 36, "width", None),
    ],
)
def test_denoisers_that_can_not_take_the_codecs_latents_are_refused(
    denoiser: Any, codec: Codec, size: int, reference: Any, told: str | None
) -> None:
    built = denoiser()
    if told is None:
        FlowHead(built, codec, image_size=size, reference=reference)
        return
    beside = "" if reference is None else f" with reference='{reference}'"
    message = FITTING.format(type(built).__name__, codec.spatial_factor, size, beside, told)
    with pytest.raises(ValueError, match=message):
        FlowHead(built, codec, image_size=size, reference=reference)


def test_the_objective_is_the_published_one_unless_given() -> None:
    objective = FlowHead(tiny_dit(), PixelCodec(4), image_size=32).objective
    assert (objective.shift, objective.density) == (3.0, "uniform")


def test_images_of_another_size_are_refused_in_training() -> None:
    with pytest.raises(ValueError, match=r"images has shape \(2, 3, 16, 32\); this head renders \(B, 3, 32, 32\)"):
        tiny_head().loss(tiny_images(2)[:, :, :16], condition(24))
