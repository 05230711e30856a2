"""`blip3o ablate`: from a plan's file to a report."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console

from blip3o.ablation.check import check_plan
from blip3o.ablation.compare import primary_score
from blip3o.ablation.files import write_text
from blip3o.ablation.launchers import build_launcher
from blip3o.ablation.plan import Plan, read_plan
from blip3o.ablation.report import write_report
from blip3o.ablation.runner import Runner, owned
from blip3o.ablation.runs import LOG, RESULT, Run, list_runs
from blip3o.ablation.screen import Screen


def ablate(path: Path, output_dir: Path, *, jobs: int = 1, launcher: str = "local", dry_run: bool = False) -> int:
    """Checks a plan, does its runs and writes its report.

    Args:
        path: the plan.
        output_dir: folder of runs and report; one of an earlier call goes on where that stopped.
        jobs: runs at a time.
        launcher: where they execute.
        dry_run: only check the plan and list the runs.

    Returns:
        0, or 1 if a run failed.

    Raises:
        ValueError: if anything is wrong with the plan or the arguments. Nothing has been trained then, unless it is
            the name of a score that only runs know: that is told after the first one, which stays.
    """
    if jobs < 1:
        raise ValueError(f"jobs ({jobs}) must be at least 1.")
    console = Console()
    plan = read_plan(path)
    runs = list_runs(plan)
    with console.status("checking the plan") as status:
        check_plan(plan, lambda name: status.update(f"checking the plan: {name}"))
    if behind := left_behind(runs, output_dir):
        console.print(behind, soft_wrap=True, markup=False, highlight=False)
    if dry_run:
        _list(console, runs, output_dir)
        return 0
    with owned(output_dir):
        starter = build_launcher(launcher, output_dir, jobs=jobs, options=plan.launchers.get(launcher))
        try:
            keep_plan(plan, output_dir)
            with Screen(jobs, console) as screen:
                tasks = Runner(
                    runs,
                    output_dir,
                    jobs=jobs,
                    launcher=starter,
                    on_change=screen.show,
                    on_result=lambda result: primary_score(plan, result),  # a wrong name ends this at the first run
                ).execute()
        finally:
            starter.close()
        comparisons = write_report(plan, tasks, output_dir, _command(path, output_dir, jobs, launcher))
    for task in tasks:
        if task.state == "failed":
            console.print(f"failed: {task.run.id}; its log is {task.folder / LOG}", soft_wrap=True, markup=False)
    for one in comparisons:
        told = f"{one.axis}: {one.variant} is {one.verdict} against {one.reference}"
        console.print(told, soft_wrap=True, markup=False, highlight=False)
    console.print(f"The report is {output_dir / 'report.html'}", soft_wrap=True, markup=False, highlight=False)
    return int(any(task.state == "failed" for task in tasks))


def keep_plan(plan: Plan, root: Path) -> None:
    """Writes the plan that runs to its folder, where its base must still be found; unless it is read from there."""
    copy = root / "plan.yaml"
    if copy.exists() and copy.samefile(plan.source.path):
        return
    base = os.path.relpath(plan.base_path.resolve(), root.resolve())
    write_text(copy, plan.source.with_value("base", Path(base).as_posix()))


def left_behind(runs: list[Run], root: Path) -> str:
    """What to say of finished runs in a folder that a plan has no use for; empty where there are none."""
    finished = {path.parent.name for path in (root / "runs").glob(f"*/{RESULT}")}
    used = finished & {run.id for run in runs}
    if used == finished:
        return ""
    return (
        f"{len(used)} of {len(finished)} finished runs in {root} match this plan; the others stay there and are left "
        "out. Another configuration, budget, seed, evaluation or metric makes another run."
    )


def _list(console: Console, runs: list[Run], root: Path) -> None:
    for run in runs:
        state = "done" if (run.folder(root) / RESULT).exists() else "to do"
        console.print(f"{state:6}{run.id}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"{len(runs)} runs", highlight=False)


def _command(path: Path, output_dir: Path, jobs: int, launcher: str) -> str:
    words = ["blip3o", "ablate", str(path), "--output_dir", str(output_dir)]
    words += ["--jobs", str(jobs)] if jobs != 1 else []
    words += ["--launcher", launcher] if launcher != "local" else []
    return shlex.join(words)
