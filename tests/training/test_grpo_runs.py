"""Whole runs of GRPO by the command line: two processes against one, and the shipped configuration."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from blip3o.training.cli import run
from tests.training.test_runs import MINI, ROOT, fit

GRPO = ROOT / "experiments/shapes/grpo.yaml"
BUNDLED = ROOT / "blip3o/assets/tiny"


def config(folder: Path, module: str = "grpo.GRPOModule", **arguments: Any) -> str:
    """A run of GRPO on the smallest composition, untrained, for the brightness of its pictures."""
    model = yaml.safe_load(MINI.read_text())["model"]["init_args"]["model"]
    values = {
        "model": model,
        "rewards": [{"class_path": "tests.training.toy.Brightness"}],
        "num_generations": 4,
        "beta": 0.1,
        "max_grad_norm": None,
        "microbatch_size": 5,
        "optimization": {"lr": 1.0e-3, "warmup_steps": 0},
        **arguments,
    }
    whole = {
        "seed_everything": 0,
        "model": {"class_path": f"blip3o.training.{module}", "init_args": values},
        "data": {
            "class_path": "blip3o.data.shapes_prompts.ShapesPromptsDataModule",
            "init_args": {"world": "shapes-mini", "seed": 1, "batch_size": 4, "num_val": 5, "num_prompts": 1},
        },
        "trainer": {
            "max_steps": 1,
            "val_check_interval": 1,
            "check_val_every_n_epoch": None,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "grpo"},
            },
            "callbacks": [
                {"class_path": "tests.training.gradients.SaveFirstStep", "init_args": {"path": "step.safetensors"}},
                {"class_path": "blip3o.training.guards.RewardGuards"},
                {"class_path": "blip3o.training.rollout_sheet.RolloutSheet"},
            ],
        },
    }
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump(whole))
    return str(path)


def rows(folder: Path) -> list[dict[str, float]]:
    """The numbers of a run's metrics.csv, row by row, without times."""
    with (folder / "runs/grpo/version_0/metrics.csv").open() as file:
        return [
            {key: float(value) for key, value in row.items() if value and not key.startswith("time/")}
            for row in csv.DictReader(file)
        ]


def fit_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    """Runs `blip3o fit` in `folder` and in this process, which saves the time to import."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    with torch.random.fork_rng(devices=[]):
        run(["fit", *args])


def test_two_processes_take_the_same_step_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups are left out on one process only, and the other's microbatches are more."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    args = {"filter_zero_spread": True, "rewards": [{"class_path": "tests.training.toy.FirstCaptions"}]}
    path = config(tmp_path, num_inference_steps=1, loss_type="dapo", scale_rewards="batch", **args)
    fit_here(one, monkeypatch, "--config", path)
    fit(two, "--config", path, "--data.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    expected, actual = load_file(one / "step.safetensors"), load_file(two / "step.safetensors")
    assert expected.keys() == actual.keys()
    gradients = {name for name in expected if name.startswith("gradient.")}
    assert gradients and all(name.startswith("gradient.model.ar.") for name in gradients)
    assert any(expected[name].abs().max() > 1e-4 for name in gradients)
    for name in gradients:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-7, msg=name)
    first, second = rows(one)[0], rows(two)[0]
    assert first.keys() == second.keys() and first["train/zero_spread"] == 0.5
    for key in first.keys() - {"train/grad_norm", "epoch", "step"}:
        assert second[key] == pytest.approx(first[key], rel=1e-4, abs=1e-6), key


def test_the_shipped_configuration_trains_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_here(
        tmp_path,
        monkeypatch,
        *["--config", str(GRPO), "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"],
        *["--data.batch_size", "2", "--data.num_val", "2", "--trainer.val_check_interval", "1"],
        *["--model.num_generations", "2", "--model.num_inference_steps", "1", "--model.optimization.warmup_steps", "0"],
        *["--model.filter_zero_spread", "false", "--model.beta", "1.0"],
    )
    folder = tmp_path / "runs/shapes/grpo"
    assert (folder / "version_0/rollouts/000001.png").is_file()
    with (folder / "version_0/metrics.csv").open() as file:
        logged = {key: value for row in csv.DictReader(file) for key, value in row.items() if value}
    assert {"train/reward/shapes_strict", "train/kl", "time/rollout", "val/score"} <= logged.keys()
    for part in ("tokenizer", "bridge", "diffusion"):
        before, after = (load_file(place / f"{part}.safetensors") for place in (BUNDLED, folder / "model"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), part
