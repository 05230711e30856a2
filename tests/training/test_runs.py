"""Whole runs of the command line: resuming after a kill, two processes against one, a head of one's own."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from blip3o import Blip3oPipeline
from blip3o.images import read_settings
from tests.readme import block

ROOT = Path(__file__).parents[2]
MINI = ROOT / "experiments/shapes/mini.yaml"
JOINT = ROOT / "experiments/shapes/joint.yaml"
QUIET = ["--trainer.enable_progress_bar", "false"]
QUICK = ["--trainer.val_check_interval", "1000", *QUIET]


def start(folder: Path, *args: str, command: str = "fit") -> subprocess.Popen[str]:
    """`blip3o fit` (or another command) in `folder`, on one thread, with the test helpers importable."""
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    words = [sys.executable, "-m", "blip3o.cli", command, *args]
    return subprocess.Popen(words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def fit(folder: Path, *args: str) -> str:
    """Runs it to its end and returns its output."""
    process = start(folder, *args)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]
    return output


def edited(source: Path, folder: Path, **callbacks: dict[str, Any]) -> str:
    """A copy of a configuration in `folder` whose callbacks have other arguments, or are new, by class name."""
    config = yaml.safe_load(source.read_text())
    known = {entry["class_path"].rsplit(".")[-1]: entry for entry in config["trainer"]["callbacks"]}
    for name, init_args in callbacks.items():
        if name in known:
            known[name]["init_args"].update(init_args)
        else:
            config["trainer"]["callbacks"].append(
                {"class_path": f"tests.training.gradients.{name}", "init_args": init_args}
            )
    path = folder / source.name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the model that a run of mini.yaml exported."""
    files = sorted((folder / "runs/shapes/mini/model").glob("*.safetensors"))
    return {f"{file.stem}.{key}": value for file in files for key, value in load_file(file).items()}


def test_a_run_killed_with_sigkill_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = edited(MINI, tmp_path, ModelCheckpoint={"every_n_train_steps": 4})
    args = ["--config", config, *QUIET, "--trainer.max_steps", "12", "--data.batch_size", "4"]
    args += ["--trainer.val_check_interval", "3", "--data.num_val", "4"]  # validation draws, and must not matter
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    fit(whole, *args)
    process = start(killed, *args)
    checkpoint = killed / "runs/shapes/mini/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.exists()
    assert not (killed / "runs/shapes/mini/model").exists(), "the run had ended before it was killed"
    seen = torch.load(checkpoint, weights_only=False)["global_step"]
    assert 0 < seen < 12
    fit(killed, *args, "--ckpt_path", str(checkpoint))
    expected, resumed = weights(whole), weights(killed)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_validate_test_and_predict_use_the_average_of_a_checkpoint(tmp_path: Path) -> None:
    config = edited(MINI, tmp_path, EMA={"decay": 0.5})
    args = ["--config", config, *QUIET, "--data.num_val", "6", "--data.num_prompts", "3", "--data.batch_size", "4"]
    fit(tmp_path, *args, "--trainer.max_steps", "4", "--trainer.val_check_interval", "4")
    checkpoint = "runs/shapes/mini/checkpoints/last.ckpt"
    for command in ("validate", "test", "predict"):
        process = start(tmp_path, *args, "--ckpt_path", checkpoint, command=command)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]
    logs = {path.parent.name: logged(path) for path in (tmp_path / "runs/shapes/mini").glob("version_*/metrics.csv")}
    fitted, validated = logs["version_0"], logs["version_1"]
    # The loss of the average: validation after the run and validation in it agree, and are not the last weights'.
    assert validated["val/cross_entropy"] == pytest.approx(fitted["val/cross_entropy"], rel=1e-5)
    assert "test/score" in logs["version_2"]
    pictures = sorted((tmp_path / "runs/shapes/mini/predictions").glob("*.png"))
    assert [path.name for path in pictures] == ["00000.png", "00001.png", "00002.png"]
    assert read_settings(pictures[0])["prompt"]


def logged(path: Path) -> dict[str, float]:
    """The last value of every column of a metrics.csv."""
    with path.open() as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


def test_two_processes_take_the_same_step_as_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    config = edited(JOINT, tmp_path, SaveFirstStep={"path": "step.safetensors"})
    args = ["--config", config, *QUICK, "--trainer.max_steps", "1", "--model.init_args.weights", "null"]
    args += ["--trainer.precision", "32-true", "--model.init_args.optimization.muon_dtype", "float32"]
    two_processes = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    fit(one, *args, "--data.batch_size", "6")
    fit(two, *args, "--data.batch_size", "3", *two_processes)
    expected, actual = load_file(one / "step.safetensors"), load_file(two / "step.safetensors")
    assert expected.keys() == actual.keys()
    gradients = {name for name in expected if name.startswith("gradient.")}
    assert any(expected[name].abs().max() > 0 for name in gradients)
    for name in gradients:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for name in expected.keys() - gradients:
        # AdamW's first step is the sign of the gradient, so a gradient of about zero may move a weight either way.
        assert (actual[name] - expected[name]).abs().median() < 1e-6, name


def test_two_processes_validate_as_one(tmp_path: Path) -> None:
    """Five scenes do not divide by two: the sampler repeats one, and it counts once."""
    args = ["--config", str(MINI), *QUIET, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    args += ["--data.num_val", "5"]
    scores = []
    for name, more in (("one", []), ("two", ["--trainer.devices", "2", "--trainer.strategy", "ddp"])):
        folder = tmp_path / name
        folder.mkdir()
        fit(folder, *args, "--data.batch_size", "4" if more else "8", *more)
        values = logged(folder / "runs/shapes/mini/version_0/metrics.csv")
        scores.append({key: value for key, value in values.items() if "score" in key})
    assert scores[0] and scores[0] == scores[1]


def test_the_readme_head_of_one_file_trains_and_generates(tmp_path: Path) -> None:
    (tmp_path / "my_head.py").write_text(block("python", "class MyHead"))
    fit(
        tmp_path,
        *["--config", str(MINI), *QUICK, "--trainer.max_steps", "2", "--model.model.diffusion", "my_head.MyHead"],
    )
    folder = tmp_path / "runs/shapes/mini/model"
    with pytest.raises(ValueError, match="trust_remote_code"):
        Blip3oPipeline.from_pretrained(folder)
    sys.path.insert(0, str(tmp_path))
    try:
        pipe = Blip3oPipeline.from_pretrained(folder, trust_remote_code=True)
    finally:
        sys.path.remove(str(tmp_path))
    assert type(pipe.model.diffusion).__name__ == "MyHead"
    assert pipe("a red circle").images[0].size == (32, 32)
