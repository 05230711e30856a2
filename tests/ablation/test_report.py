"""The report holds every verdict and plot, needs no other file, and escapes what comes from outside."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from blip3o.ablation.files import write_json
from blip3o.ablation.plan import read_plan
from blip3o.ablation.plots import curve_names, frontier
from blip3o.ablation.report import write_report
from blip3o.ablation.runner import Task
from blip3o.ablation.runs import FAILURE, RESULT, list_runs
from blip3o.ablation.words import cost_note, cost_rows
from tests.ablation.plans import write_plan
from tests.ablation.simulated import simulated_results
from tests.test_demo import Page


def test_a_report_of_three_heads_and_a_failure(tmp_path: Path) -> None:
    axes = {"head": {"ref": {}, "same": {}, "good<b>": {}}}
    plan = read_plan(write_plan(tmp_path, axes=axes, seeds=[0, 1, 2, 3], margin=0.1))
    results = simulated_results(plan, {"ref": 0.5, "same": 0.51, "good<b>": 0.8}, spread=0.003)
    tasks = []
    for run in list_runs(plan):
        task = Task(run, run.folder(tmp_path), state="done")
        result = results[run.combination][run.seed] | {"id": run.id}
        if run.variant == "ref" and run.seed == 3:
            task.state = "failed"
            write_json(task.folder / FAILURE, {"exit_code": 1, "log": "Error: a < b"})
        else:
            write_json(task.folder / RESULT, result)
        tasks.append(task)
    comparisons = write_report(plan, tasks, tmp_path, "blip3o ablate plan.yaml --output_dir 'a b'")
    assert [one.verdict for one in comparisons] == ["equivalent", "better"]

    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and "good<b>" not in text
    assert not [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert len(page.images) == 3 and all(image["alt"] for image in page.images)
    assert page.ids == ["verdicts", "scores", "curves", "frontiers", "prompts", "failed", "made"]
    markdown = (tmp_path / "report.md").read_text()
    for words in ("equivalent", "better", "blip3o ablate plan.yaml --output_dir 'a b'", "Error: a < b", "git: abc"):
        assert words in page.text and words in markdown
    for name in ("quality", "curves", "frontiers"):
        assert (tmp_path / f"plots/{name}.png").is_file() and f"plots/{name}.png" in markdown

    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows].count("done") == 11 and len(rows) == 12
    assert {row["head"] for row in rows} == {"ref", "same", "good<b>"}
    assert list(rows[0])[-1] == "timings/started"


def test_a_report_without_a_finished_run_says_so(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path))
    tasks = [Task(run, run.folder(tmp_path), state="failed") for run in list_runs(plan)]
    assert write_report(plan, tasks, tmp_path, "blip3o ablate") == []
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == [] and "No comparison has finished runs" in page.text and "0 of 2" in page.text


def test_costs_name_the_memory_of_a_gpu_and_the_runs_beside(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path))
    results = simulated_results(plan, {"two": 0.5, "one": 0.5})
    assert all("1.00 GiB" in row for row in cost_rows(plan, results)) and "up to 2 runs" in cost_note(results)
    for own in results.values():
        own[0]["timings"]["peak_gpu_memory_bytes"] = 3 * 2**30
        own[0]["jobs"] = 1
    assert all("3.00 GiB (GPU)" in row for row in cost_rows(plan, results)) and cost_note(results) == ""


def test_a_run_that_diverged_is_named_and_kept_out(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, seeds=[0, 1, 2]))
    results = simulated_results(plan, {"two": 0.5, "one": 0.8}, spread=0.01)
    tasks = [Task(run, run.folder(tmp_path), state="done") for run in list_runs(plan)]
    for task in tasks:
        result = results[task.run.combination][task.run.seed]
        write_json(task.folder / RESULT, result)
    lost = tasks[3]
    nan = float("nan")
    curve = [{"step": step, "seconds": step, "train/loss": nan} for step in (1, 2, 3)]
    write_json(lost.folder / RESULT, result | {"scores": {"shapes/overall": nan}})
    write_json(tasks[0].folder / RESULT, results[tasks[0].run.combination][0] | {"curve": curve})
    (found,) = write_report(plan, tasks, tmp_path, "blip3o ablate")
    assert found.estimate.num_seeds == 2 and lost.state == "failed"
    markdown = (tmp_path / "report.md").read_text()
    assert f"Failed: {lost.run.id} (diverged)" in markdown and "shapes/overall is nan after 3 steps" in markdown
    with (tmp_path / "results.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)].count("diverged") == 1


def test_the_results_are_there_even_where_the_score_is_not(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, primary="val/flo", higher_is_better=False))
    (run, *_) = list_runs(plan)
    task = Task(run, run.folder(tmp_path), state="done")
    write_json(task.folder / RESULT, simulated_results(plan, {"two": 0.5})[run.combination][0])
    with pytest.raises(ValueError, match="runs have no score 'val/flo'"):
        write_report(plan, [task], tmp_path, "blip3o ablate")
    assert "done" in (tmp_path / "results.csv").read_text()


def test_the_frontier_holds_what_nothing_beats() -> None:
    points = [(1.0, 0.2), (2.0, 0.1), (3.0, 0.5), (3.0, 0.6), (4.0, 0.6)]
    assert frontier(points) == [(1.0, 0.2), (3.0, 0.6)]
    assert frontier(points, higher=False) == [(1.0, 0.2), (2.0, 0.1)]


def test_a_learning_curve_is_of_the_reward_where_there_is_one(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path))
    results = simulated_results(plan, {"two": 0.5, "one": 0.8})
    assert curve_names(plan, results) == ["train/loss"]
    for own in results.values():
        own[0]["curve"] = [{**point, "train/reward": point["step"] / 10} for point in own[0]["curve"]]
    assert curve_names(plan, results) == ["train/reward"]
