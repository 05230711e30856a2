"""Whole runs of Flow-GRPO by the command line: two processes against one, and the shipped configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_grpo_runs import BUNDLED, config, fit_here, rows
from tests.training.test_runs import ROOT, fit, logged


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups are left out on one process only, and the other's microbatches are more."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    path = config(
        tmp_path,
        "flow_grpo.FlowGRPOModule",
        rewards=[{"class_path": "tests.training.toy.FirstCaptions"}],
        num_train_steps=4,
        timestep_fraction=0.7,
        filter_zero_spread=True,
        loss_type="dapo",
        scale_rewards="batch",
    )
    fit_here(one, monkeypatch, "--config", path)
    fit(two, "--config", path, "--data.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    expected, actual = load_file(one / "step.safetensors"), load_file(two / "step.safetensors")
    assert expected.keys() == actual.keys()
    gradients = {name for name in expected if name.startswith("gradient.")}
    assert gradients and all(name.startswith("gradient.model.diffusion.denoiser.") for name in gradients)
    largest = max(float(expected[name].abs().max()) for name in gradients)
    assert largest > 0
    for name in gradients:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name)
    first, second = rows(one)[0], rows(two)[0]
    assert first.keys() == second.keys() and first["train/zero_spread"] == 0.5
    for key in first.keys() - {"train/grad_norm", "epoch", "step"}:
        assert second[key] == pytest.approx(first[key], rel=1e-4, abs=1e-6), key


def test_the_shipped_configuration_trains_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_here(
        tmp_path,
        monkeypatch,
        *["--config", str(ROOT / "experiments/shapes/flow_grpo.yaml"), "--trainer.max_steps", "2"],
        *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "2"],
        *["--data.batch_size", "2", "--data.num_val", "2", "--model.num_generations", "4"],
        *["--model.num_train_steps", "3", "--model.optimization.warmup_steps", "0"],
    )
    folder = tmp_path / "runs/shapes/flow_grpo"
    assert (folder / "version_0/rollouts/000001.png").is_file()
    seen = logged(folder / "version_0/metrics.csv")
    assert {"train/reward/shapes_strict", "train/reward/compressibility", "train/clip_fraction"} <= seen.keys()
    assert {"time/rollout", "time/reward", "time/update", "val/score"} <= seen.keys()
    for part in ("tokenizer", "ar", "bridge", "diffusion"):
        before, after = (load_file(place / f"{part}.safetensors") for place in (BUNDLED, folder / "model"))
        assert before.keys() == after.keys()
        for key in before:
            if not key.startswith("denoiser."):
                assert torch.equal(before[key], after[key]), f"{part}.{key}"
