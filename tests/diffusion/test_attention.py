"""Attention of the denoisers: every kernel gives the same numbers, and the setting reaches torch's switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.diffusion import Denoiser, DiT, Lumina2
from blip3o.diffusion.attention import TorchAttention
from blip3o.diffusion.library import DiffusersDenoiser
from tests.diffusion.contract import DenoiserContract
from tests.diffusion.test_lumina2 import tiny_lumina2
from tests.diffusion.test_pixart import tiny_pixart
from tests.diffusion.test_sd3 import sd3
from tests.gpus import BFLOAT16, CUDA, pretend
from tests.tiny import perturbed, rebuilt, tiny_dit, tiny_sana

DENOISERS: dict[str, Callable[[], Denoiser]] = {
    "dit": lambda: tiny_dit().eval(),
    "sana": lambda: perturbed(tiny_sana()).eval(),
    "pixart": tiny_pixart,
    "sd3": lambda: perturbed(sd3()).eval(),
    "lumina2": tiny_lumina2,
}
EACH = pytest.mark.parametrize("name", list(DENOISERS))
UNMASKED = pytest.mark.parametrize("name", [name for name in DENOISERS if name != "lumina2"])
Backends = tuple[bool, bool]


def built(name: str) -> Any:
    return DENOISERS[name]()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Backends]:
    """Whether torch may take (flash kernels, plain products), at every call of its attention."""
    seen: list[Backends] = []
    attend = F.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


@EACH
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_eager_and_sdpa_predict_the_same(name: str, masked: bool, calls: list[Backends]) -> None:
    denoiser = built(name)
    latents, sigma, cond = DenoiserContract().inputs(denoiser)
    if masked:
        mask = torch.ones(cond.embeds.shape[:2], dtype=torch.bool)
        mask[0, -4:] = False
        cond = replace(cond, mask=mask)
    predicted, allowed = {}, {}
    for setting in ("auto", "sdpa", "eager"):
        denoiser.set_attention(setting)
        calls.clear()
        predicted[setting] = denoiser(latents, sigma, cond)
        allowed[setting] = set(calls)
    assert allowed == {"auto": {(True, True)}, "sdpa": {(True, True)}, "eager": {(False, True)}}
    assert torch.equal(predicted["auto"], predicted["sdpa"])
    torch.testing.assert_close(predicted["eager"], predicted["sdpa"], rtol=1e-5, atol=1e-5)
    assert torch.backends.cuda.flash_sdp_enabled()


@EACH
def test_the_setting_is_kept_and_none_other_is_taken(name: str) -> None:
    denoiser = built(name)
    assert denoiser.config()["init_args"]["attention"] == "auto"
    denoiser.set_attention("eager")
    again = rebuilt(denoiser)
    assert again.attention == "eager" and again.config() == denoiser.config()
    with pytest.raises(ValueError, match=r"attention \('flash_attention_2'\) must be one of auto, flash, sdpa, eager"):
        denoiser.set_attention("flash_attention_2")
    assert denoiser.attention == "eager"


@UNMASKED
def test_flash_opens_torchs_flash_kernel_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = built(name)
    denoiser.set_attention("flash")
    pretend(monkeypatch)
    with denoiser.attention_context(None):
        assert torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


@UNMASKED
def test_flash_refuses_a_condition_with_a_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = built(name)
    denoiser.set_attention("flash")
    latents, sigma, cond = DenoiserContract().inputs(denoiser)
    pretend(monkeypatch)
    with pytest.raises(ValueError, match=r"attention \('flash'\) .* for a condition with a mask, .* 'auto'"):
        denoiser(latents, sigma, replace(cond, mask=cond.full_mask()))


@UNMASKED
def test_flash_without_a_gpu_is_refused_when_it_runs(name: str) -> None:
    denoiser = built(name)
    denoiser.set_attention("flash")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no CUDA device; run it on a GPU"):
            denoiser(*DenoiserContract().inputs(denoiser))
    with torch.device("meta"):  # only shapes are asked for
        denoiser.to("meta")(*(one.to("meta") for one in DenoiserContract().inputs(denoiser)[:2]), _condition(denoiser))


def _condition(denoiser: Denoiser) -> Any:
    cond = DenoiserContract().inputs(denoiser)[2]
    return replace(cond, embeds=cond.embeds.to("meta"))


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({"built": False}, "this torch was built without flash kernels"),
        ({"capability": (7, 0)}, r"compute capability is 7\.0"),
        ({"dtype": torch.float32}, "it computes in float32"),
        ({"device": torch.device("cpu")}, "the weights are on cpu"),
    ],
)
def test_flash_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], told: str) -> None:
    denoiser = built("dit")
    denoiser.set_attention("flash")
    pretend(monkeypatch, **machine)
    with pytest.raises(ValueError, match=told):
        denoiser(*DenoiserContract().inputs(denoiser))


def test_flash_is_refused_to_networks_that_always_mask_and_to_wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert Lumina2.always_masked
    with pytest.raises(ValueError, match="its network always masks its condition"):
        built("lumina2").attention_kernel(CUDA, BFLOAT16, "flash")
    wide = DiT(latent_channels=1, latent_size=2, cond_dim=4, width=264, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="its heads are 264 wide"):
        wide.attention_kernel(CUDA, BFLOAT16, "flash")
    for name in ("dit", "sana", "pixart", "sd3"):
        assert built(name).attention_kernel(CUDA, BFLOAT16, "flash") == "flash"


@pytest.mark.parametrize(("name", "sizes"), [("sana", {8}), ("pixart", {8}), ("sd3", {8}), ("lumina2", {12})])
def test_head_sizes_are_those_of_softmax_attention(name: str, sizes: set[int]) -> None:
    assert built(name).head_sizes == sizes


def test_linear_attention_of_sana_counts_no_head() -> None:
    assert tiny_sana(attention_head_dim=16, num_attention_heads=1).head_sizes == {8}


@pytest.mark.parametrize("name", [name for name in DENOISERS if name != "dit"])
def test_diffusers_backends_do_not_reach_these_transformers(name: str) -> None:
    """Where this fails, diffusers has begun to dispatch them, and `set_attention_backend` would do something."""
    denoiser = built(name)
    assert isinstance(denoiser, DiffusersDenoiser) and isinstance(denoiser, TorchAttention)
    processors = [module.processor for module in denoiser.transformer.modules() if hasattr(module, "processor")]
    assert processors and not any(hasattr(processor, "_attention_backend") for processor in processors)
