"""TokenizerModule: it reconstructs what the tokenizer reads, and says what its rows lack."""

from __future__ import annotations

import pytest

from blip3o.data.shapes import ShapesDataModule
from blip3o.diffusion import PixelCodec
from blip3o.tokenizers import FSQ
from blip3o.training.base import Optimization
from blip3o.training.history import fit_steps
from blip3o.training.tokenizer import TokenizerModule
from tests.tiny import tiny_tokenizer

FAST = Optimization(lr=1e-2, warmup_steps=1)


def data(describe: int | None = None) -> ShapesDataModule:
    return ShapesDataModule(world="shapes-mini", batch_size=8, num_val=1, num_prompts=1, describe=describe)


@pytest.mark.parametrize("latents", [False, True], ids=["pixels", "latents"])
def test_reconstruction_improves(latents: bool) -> None:
    codec = {"codec": PixelCodec(patch_size=4), "patch_size": 2} if latents else {}
    module = TokenizerModule(tiny_tokenizer(FSQ([8, 8, 8]), **codec), FAST)
    steps = fit_steps(module, data(), num_steps=30)
    assert steps[-1]["reconstruction"] < 0.6 * steps[0]["reconstruction"]
    assert "align" not in steps[0]


def test_alignment_improves() -> None:
    width = data(4)._make_row(0)["descriptors"].shape[-1]
    steps = fit_steps(TokenizerModule(tiny_tokenizer(), FAST, align_weight=1.0, align_dim=width), data(4), num_steps=30)
    assert steps[-1]["align"] < 0.8 * steps[0]["align"]


@pytest.mark.parametrize(
    ("describe", "told"),
    [
        (None, r"align_weight \(1\.0\) needs rows with `descriptors`; set the data's `describe` to .* \(4\)"),
        (2, r"descriptors have shape \(8, 4, \d+\) instead of \(8, 16, 7\)"),
    ],
)
def test_rows_without_the_descriptors_asked_for_are_refused(describe: int | None, told: str) -> None:
    module = TokenizerModule(tiny_tokenizer(), FAST, align_weight=1.0, align_dim=7)
    with pytest.raises(ValueError, match=told):
        fit_steps(module, data(describe), num_steps=1)
