"""JointModule: what it refuses, what it freezes, and that dropout repeats with the step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from blip3o.checkpoints import save_part
from blip3o.data.shapes import ShapesDataModule
from blip3o.training.base import Optimization
from blip3o.training.history import Metrics, fit_steps
from blip3o.training.joint import JointModule
from tests.tiny import perturbed, tiny_model


def data(batch_size: int = 4) -> ShapesDataModule:
    return ShapesDataModule(world="shapes-mini", batch_size=batch_size, num_val=1, num_prompts=1)


def test_tokenizer_and_codec_stay_frozen_and_patterns_choose_among_the_rest() -> None:
    module = JointModule(tiny_model())
    trains = {name.split(".")[0] for name, p in module.model.named_parameters() if p.requires_grad}
    assert trains == {"ar", "bridge", "diffusion"}
    module = JointModule(tiny_model(), trainable=["bridge.*"])
    assert {name.split(".")[0] for name, p in module.model.named_parameters() if p.requires_grad} == {"bridge"}
    with pytest.raises(ValueError, match=r"trainable \(\['tokenizer\.\*'\]\) matches .* which make the targets"):
        JointModule(tiny_model(), trainable=["tokenizer.*"])


def test_parts_start_from_the_weights_given(tmp_path: Path) -> None:
    other = perturbed(tiny_model().bridge, seed=5)
    save_part(other, tmp_path / "bridge.safetensors")
    module = JointModule(tiny_model(), weights={"bridge": str(tmp_path / "bridge.safetensors")})
    for name, tensor in other.state_dict().items():
        assert torch.equal(module.model.bridge.state_dict()[name], tensor)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_part(nn.Linear(2, 2), tmp_path / "linear.safetensors")
    with pytest.raises(ValueError, match=r"weights names 'brigde', which the model lacks; its parts are \['tokenizer'"):
        JointModule(tiny_model(), weights={"brigde": str(tmp_path / "linear.safetensors")})
    with pytest.raises(ValueError, match="missing"):
        JointModule(tiny_model(), weights={"bridge": str(tmp_path / "linear.safetensors")})


def test_a_batch_without_a_rendered_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"render_every \(3\) leaves the diffusion head no row of a batch of 2"):
        fit_steps(JointModule(tiny_model(), render_every=3), data(2), num_steps=3)


def dropped_out(seed: int) -> list[Metrics]:
    """Three steps of a model whose AR drops attention weights, from another state of torch's global generator."""
    model = tiny_model()
    for layer in model.ar.lm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(seed)
    return fit_steps(JointModule(model.train(), Optimization(warmup_steps=1)), data(), num_steps=3)


def test_dropout_depends_on_the_step_and_not_on_what_was_drawn_before() -> None:
    assert dropped_out(1) == dropped_out(2)
    plain = fit_steps(JointModule(tiny_model(), Optimization(warmup_steps=1)), data(), num_steps=3)
    assert plain != dropped_out(1)


def test_validation_renders_with_the_guidance_interval_and_a_head_must_be_able_to() -> None:
    batch = {"caption": ["a red circle", "a circle"], "index": torch.arange(2)}
    plain, everywhere, limited = (
        JointModule(tiny_model(), num_inference_steps=4, guidance_interval=interval).eval().predict_step(batch, 0)
        for interval in (None, (0.0, 1.0), (0.6, 0.95))
    )
    assert torch.equal(plain, everywhere) and not torch.equal(plain, limited)
    with pytest.raises(ValueError, match=r"step_cache \(0.1\) needs a denoiser with blocks to skip"):
        JointModule(tiny_model(), step_cache=0.1)
    with pytest.raises(ValueError, match=r"guidance_interval \(\(0.9, 0.1\)\) must hold"):
        JointModule(tiny_model(), guidance_interval=(0.9, 0.1))
