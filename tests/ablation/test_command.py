"""The command over runs that are finished: nothing is trained, everything else happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3o.ablation.files import locked, write_json
from blip3o.ablation.plan import read_plan
from blip3o.ablation.runs import RESULT, list_runs
from blip3o.cli import main
from tests.ablation.plans import write_plan
from tests.ablation.simulated import simulated_results


def finished(path: Path, root: Path) -> None:
    """Results of every run of a plan in an ablation's folder."""
    plan = read_plan(path)
    results = simulated_results(plan, {"two": 0.5, "one": 0.5})
    with locked(root / ".lock", wait=False):
        for run in list_runs(plan):
            write_json(run.folder(root) / RESULT, results[run.combination][run.seed] | {"id": run.id})


def test_a_score_that_no_run_has_is_told_at_the_first_one_and_another_needs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "out"
    path = write_plan(tmp_path, primary="train/flo", higher_is_better=False)
    finished(path, root)
    for run in list_runs(read_plan(path))[1:]:
        (run.folder(root) / RESULT).unlink()
    words = ["ablate", str(path), "--output_dir", str(root)]
    assert main(words) == 2
    line = capsys.readouterr().err.strip()
    assert "runs have no score 'train/flo'; name one of train/loss, shapes/overall" in line and "\n" not in line
    assert len(list((root / "runs").iterdir())) == 2 and not list((root / "runs").glob("*/log.txt"))

    path = write_plan(tmp_path, primary="train/loss", higher_is_better=False)
    finished(path, root)
    assert main(words) == 0
    assert "primary: train/loss" in (root / "report.html").read_text()


def test_a_plan_runs_again_from_its_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    path = write_plan(tmp_path)
    finished(path, root)
    assert main(["ablate", str(path), "--output_dir", str(root)]) == 0
    path.unlink()
    before = (root / "plan.yaml").read_text()
    assert main(["ablate", str(root / "plan.yaml"), "--output_dir", str(root)]) == 0
    assert (root / "plan.yaml").read_text() == before and "match this plan" not in capsys.readouterr().out
