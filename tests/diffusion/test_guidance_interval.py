"""Guidance within an interval of noise levels: exact inside, the condition alone outside, and fewer rows computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blip3o.diffusion import FlowHead
from blip3o.diffusion.guidance import Guidance, limited
from tests.diffusion.contract import condition
from tests.tiny import tiny_dit, tiny_head, tiny_images

LATENTS = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(0))
SCALES = [{}, {"image_guidance_scale": 1.5}]


def seen_rows(head: FlowHead) -> list[int]:
    rows: list[int] = []
    head.denoiser.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def sampled(head: FlowHead, scales: dict[str, float], **given: Any) -> torch.Tensor:
    if scales:
        given["references"] = tiny_images(2)[:, None]
    return head.sample(
        condition(24, seed=1),
        negative=condition(24, seed=2),
        latents=LATENTS,
        num_inference_steps=4,
        guidance_scale=3.0,
        **scales,
        **given,
    )


def head_for(scales: dict[str, float]) -> FlowHead:
    head = tiny_head()
    return head if not scales else FlowHead(head.denoiser, head.codec, image_size=32, reference="channels")


@pytest.mark.parametrize("scales", SCALES, ids=["text", "references"])
def test_off_and_all_noise_levels_are_what_was(scales: dict[str, float]) -> None:
    head = head_for(scales)
    plain = sampled(head, scales)
    for interval in (None, (0, 1), (0.0, 1.0)):
        assert torch.equal(sampled(head, scales, guidance_interval=interval), plain)
    assert not torch.equal(sampled(head, scales, guidance_interval=(0.5, 0.8)), plain)


@pytest.mark.parametrize("scales", SCALES, ids=["text", "references"])
def test_outside_the_interval_the_condition_alone_runs(scales: dict[str, float]) -> None:
    head = head_for(scales)
    levels = head.sampler.start(head.objective, 4, torch.device("cpu"))[1].tolist()
    assert levels == pytest.approx([1.0, 0.9, 0.75, 0.5], abs=1e-6)
    rows = seen_rows(head)
    sampled(head, scales, guidance_interval=(0.5, 0.9001))  # the lower end is outside
    every = 6 if scales else 2 * 2
    assert rows == [2, every, every, 2]


@pytest.mark.parametrize("scales", SCALES, ids=["text", "references"])
def test_an_interval_without_a_step_is_no_guidance_at_all(scales: dict[str, float]) -> None:
    head = head_for(scales)
    given = {"references": tiny_images(2)[:, None]} if scales else {}
    alone = head.sample(condition(24, seed=1), latents=LATENTS, num_inference_steps=4, **given)
    assert torch.equal(sampled(head, scales, guidance_interval=(0.0, 0.1)), alone)


def test_rows_of_several_noise_levels_are_each_inside_or_not() -> None:
    denoiser, cond, negative = tiny_dit(), condition(24, seed=1), condition(24, seed=2)
    sigma = torch.tensor([0.3, 0.7])
    guide = Guidance(denoiser, cond, negative, 3.0)
    mixed = limited(guide, lambda latents, sigma: denoiser(latents, sigma, cond), (0.3, 0.7))(LATENTS, sigma)
    assert torch.equal(mixed[0], denoiser(LATENTS, sigma, cond)[0])
    assert torch.equal(mixed[1], guide(LATENTS, sigma)[1])
    assert not torch.equal(mixed[0], guide(LATENTS, sigma)[0])


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_intervals_out_of_range_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"guidance_interval \(.*\) must hold 0 <= low < high <= 1"):
        sampled(tiny_head(), {}, guidance_interval=interval)


@pytest.mark.parametrize("interval", [(0.5,), 0.5, ("a", "b"), (0.1, float("nan"))])
def test_what_is_no_interval_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match=r"guidance_interval \(.*\) must be two noise levels"):
        tiny_head().check_rendering(guidance_interval=interval)
