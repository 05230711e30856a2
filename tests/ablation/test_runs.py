"""Real ablations of a few steps: killed and taken up again, with a failing variant and a head of one's own."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blip3o.ablation.runner as runner
from blip3o import Blip3oPipeline
from blip3o.ablation.launchers import build_launcher
from blip3o.ablation.plan import read_plan
from blip3o.ablation.runs import RESULT, list_runs
from blip3o.ablation.tables import TIMINGS
from blip3o.cli import main
from tests.ablation.plans import write_heads, write_plan

ROOT = Path(__file__).parents[2]


def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of `folder` and of this repository can be imported here and in new processes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(folder))


def wait_for(happened: Callable[[], Any], seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(root: Path) -> list[dict[str, str]]:
    """results.csv without its timings."""
    with (root / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in csv.DictReader(file)]


def test_killed_and_run_again_with_a_head_of_ones_own_and_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importable(tmp_path, monkeypatch)
    plan = write_plan(tmp_path, axes=write_heads(tmp_path), keep_models=True)
    root = tmp_path / "out"
    runs = list_runs(read_plan(plan))
    process = os.fork()
    if process == 0:  # a runner like the command's, whose imports are done
        try:
            with runner.owned(root):
                launcher = build_launcher("local", root, jobs=2)
                runner.Runner(runs, root, jobs=2, launcher=launcher).execute()
        finally:
            os._exit(0)
    wait_for(lambda: any((run.folder(root) / RESULT).exists() for run in runs))
    with pytest.raises(ValueError, match="in use by another"), runner.owned(root):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    before = {run.id: (run.folder(root) / RESULT).read_bytes() for run in runs if (run.folder(root) / RESULT).exists()}
    assert 1 <= len(before) < len(runs)

    assert main(["ablate", str(plan), "--output_dir", str(root), "--jobs", "2"]) == 1
    told = capsys.readouterr().out
    for run in runs:
        done = (run.folder(root) / RESULT).exists()
        assert done == (run.variant != "broken")
        assert (
            not done
            or before.get(run.id, (run.folder(root) / RESULT).read_bytes()) == (run.folder(root) / RESULT).read_bytes()
        ), "a finished run was done again"
    assert "failed: broken-seed0" in told and f"The report is {root / 'report.html'}" in told
    assert "this head never learns" in (root / "report.md").read_text()
    assert [row["state"] for row in rows(root)] == ["done", "done", "failed"]

    result = json.loads((runs[0].folder(root) / RESULT).read_text())
    assert result["steps"] == 3 and result["flops_per_step"] > 1e7
    assert {"tokenizer", "ar", "bridge", "diffusion", "total", "trainable"} == set(result["parameters"])
    assert {"shapes/overall", "shapes/counting"} <= set(result["scores"])
    assert {"train/flow", "train/cross_entropy", "val/flow"} <= set(result["losses"])
    assert len(result["prompts"]["shapes"]) == 6 and len(result["samples"]) == 6
    timings = ("latency_seconds", "images_per_second", "peak_memory_bytes", "train_images_per_second", "wall_seconds")
    assert all(result["timings"][name] > 0 for name in timings)
    assert (root / "report.html").read_text().count("data:image/png") == 3 + 2 * 6

    model = next(run for run in runs if run.variant == "mine").folder(root) / "model"
    pipe = Blip3oPipeline.from_pretrained(model, trust_remote_code=True)
    assert type(pipe.model.diffusion).__name__ == "MyHead"
    assert pipe.defaults.num_inference_steps == 1, "what was scored and timed is not what the plan says"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--jobs", "0"], "jobs (0) must be at least 1"),
        (["--launcher", "rocket"], "launcher (rocket) must be one of local, slurm, ray"),
        (["--output_dir", "plan.yaml"], "output_dir (plan.yaml) is a file"),
        (["--output_dir", "."], "holds files that are no ablation's"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    told: str,
) -> None:
    write_plan(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", "plan.yaml", "--output_dir", "out", *args]) == 2
    line = capsys.readouterr().err.strip()
    assert told in line and line.startswith("blip3o ablate: ") and "\n" not in line
    assert not (tmp_path / "out/runs").exists()


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(tmp_path, seeds=[0, 1])
    assert main(["ablate", str(plan), "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert told.count("to do") == 4 and "one-seed1-" in told and "4 runs" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_three_times_at_random_the_table_is_that_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importable(tmp_path, monkeypatch)
    plan = write_plan(tmp_path, seeds=[0, 1])

    def start(root: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "blip3o.cli", "ablate", str(plan), "--output_dir", str(root), "--jobs", "2"]
        return subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait(600) == 0
    took = time.monotonic() - begun
    draw = random.Random(0)
    for _ in range(3):
        process = start(tmp_path / "killed")
        time.sleep(draw.uniform(0.2, 0.8) * took)
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait(600) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "slurm"])
def test_other_launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[launcher])
    importable(tmp_path, monkeypatch)
    plan = write_plan(tmp_path, slurm={"cluster": "local", "timeout_min": 10})
    root = tmp_path / "out"
    assert main(["ablate", str(plan), "--output_dir", str(root), "--launcher", launcher]) == 0
    assert [row["state"] for row in rows(root)] == ["done", "done"]
