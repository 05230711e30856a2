"""One row a run: `results.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3o.ablation.files import write_text
from blip3o.ablation.plan import Plan
from blip3o.ablation.runner import Task

TIMINGS = "timings/"
"""Prefix of the columns that no two executions of a run share."""


def rows(plan: Plan, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The runs in the plan's order, failed ones included."""
    found = []
    for task in tasks:
        row: dict[str, Any] = {"run": task.run.id, **dict(task.run.combination), "seed": task.run.seed}
        result = task.result()
        row["state"] = "done" if result else task.state
        if result:
            row["primary"] = (result["losses"] | result["scores"]).get(plan.primary)
            if row["primary"] is not None and not math.isfinite(row["primary"]):
                row["state"] = "diverged"
            row |= result["scores"] | result["losses"]
            row |= {f"parameters/{name}": count for name, count in result["parameters"].items()}
            row |= {"steps": result["steps"], "flops_per_step": result["flops_per_step"]}
            row |= {f"versions/{name}": version for name, version in result["versions"].items()}
            row |= {name: result.get(name) for name in ("git", "machine", "accelerator", "threads", "jobs")}
            row |= {f"{TIMINGS}{name}": value for name, value in result["timings"].items()}
            row[f"{TIMINGS}started"] = result["started"]
        found.append(row)
    return found


def write_results(plan: Plan, tasks: Sequence[Task], path: Path) -> None:
    """Writes the rows as CSV, timings last."""
    found = rows(plan, tasks)
    names = list(dict.fromkeys(name for row in found for name in row))
    names.sort(key=lambda name: name.startswith(TIMINGS))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(path, text.getvalue())
