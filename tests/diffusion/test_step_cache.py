"""The cache of denoising steps: it skips blocks in every denoiser that has some, and leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.diffusion import Codec, Denoiser, FlowHead, PixelCodec, TokenDecoderHead
from tests.diffusion.contract import condition
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sd3 import sd3
from tests.tiny import perturbed, tiny_dcae, tiny_dit, tiny_sana

DENOISERS: dict[str, Callable[[], Denoiser]] = {
    "DiT": lambda: tiny_dit(depth=3),
    "Sana": lambda: perturbed(tiny_sana(num_layers=3)),
    "PixArt": lambda: tiny_pixart(num_layers=3),
    "Lumina2": lambda: tiny_lumina2(num_layers=3),
    "SD3": lambda: perturbed(sd3(num_layers=4)),
}


def head_of(name: str) -> FlowHead:
    denoiser = DENOISERS[name]().eval()
    codec: Codec = PixelCodec(patch_size=4) if name == "DiT" else tiny_dcae()
    return FlowHead(denoiser, codec, image_size=32).eval()


def sampled(head: FlowHead, steps: int = 6, **given: Any) -> Tensor:
    width = head.cond_dim
    noise = torch.randn(2, *head.latent_shape, generator=torch.Generator().manual_seed(0))
    guided = {"guidance_scale": 2.0, "negative": condition(width, seed=2)} | given
    return head.sample(condition(width, seed=1), latents=noise, num_inference_steps=steps, **guided)


def counted(head: FlowHead) -> list[int]:
    """Calls of a block's own layers: the hooks of a cache take the place of a block, not of what is in it."""
    calls: list[int] = [0] * len(head.denoiser.cached_blocks)
    for index, block in enumerate(head.denoiser.cached_blocks):

        def count(*_: Any, index: int = index) -> None:
            calls[index] += 1

        next(block.children()).register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("name", DENOISERS)
def test_blocks_are_skipped_and_the_result_stays_near(name: str) -> None:
    head = head_of(name)
    plain = sampled(head)
    calls = counted(head)
    cached = sampled(head, step_cache=1.0 if name == "SD3" else 0.5)
    once = calls[0] // 6
    assert calls[0] == 6 * once, "the first block runs at every step"
    assert all(once <= number < calls[0] for number in calls[1:]), "the others at the first, and not at all"
    assert not torch.equal(cached, plain)
    assert (cached - plain).abs().mean() < 0.2 * plain.abs().mean()


@pytest.mark.parametrize("name", DENOISERS)
def test_a_threshold_that_nothing_passes_and_none_change_nothing(name: str) -> None:
    head = head_of(name)
    plain = sampled(head)
    for threshold in (None, 0, 1e-9):
        assert torch.equal(sampled(head, step_cache=threshold), plain)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_sampling_leaves_no_trace_in_the_next(name: str) -> None:
    head = head_of(name)
    plain, state = sampled(head, steps=3), list(head.state_dict())
    cached = sampled(head, steps=3, step_cache=2.0)
    assert not torch.equal(cached, plain)
    assert torch.equal(sampled(head, steps=3), plain)
    assert torch.equal(sampled(head, steps=3, step_cache=2.0), cached)
    assert list(head.state_dict()) == state
    again = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    assert torch.equal(sampled(again, steps=3), plain), "a copy runs its own blocks"


def test_guided_and_unguided_steps_have_caches_of_their_own() -> None:
    head = head_of("Sana")
    rows: list[int] = []
    head.denoiser.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    cached = sampled(head, guidance_interval=(0.6, 0.95), step_cache=0.5)
    assert set(rows) == {2, 4}
    assert not torch.equal(cached, sampled(head, guidance_interval=(0.6, 0.95)))


def test_a_call_that_fails_leaves_the_denoiser_as_it_was() -> None:
    head = head_of("Sana")
    plain = sampled(head)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = head.denoiser.cached_blocks[1].attn1.register_forward_pre_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="out of memory"):
        sampled(head, step_cache=0.5)
    handle.remove()
    assert torch.equal(sampled(head), plain)


def test_it_is_refused_where_there_is_nothing_to_skip() -> None:
    single = FlowHead(tiny_dit(depth=1), PixelCodec(patch_size=4), image_size=32)
    with pytest.raises(ValueError, match=r"step_cache \(0.1\) needs a denoiser with blocks to skip, and this DiT has"):
        single.check_rendering(step_cache=0.1)
    with pytest.raises(ValueError, match=r"step_cache \(0.1\) is nothing that TokenDecoderHead can do"):
        TokenDecoderHead(image_size=32).check_rendering(step_cache=0.1)
    for wrong in (-0.1, float("inf"), float("nan"), "much", True):
        with pytest.raises(ValueError, match=r"step_cache \(.*\) must be a number of at least 0"):
            single.check_rendering(step_cache=wrong)  # type: ignore[arg-type]
