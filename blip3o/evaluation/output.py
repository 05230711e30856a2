"""The folder of a shapes benchmark: what may stand in it before, and what is written about all of its images."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip3o.shapes.any_world import AnyWorld

MAX_SEED = 10**12
_FILES = ("results.jsonl", "summary.json", "sheet.png")


def output_folder(output_dir: str | Path, seed: int, **counts: int) -> Path:
    """The folder to write to, once the arguments are in range.

    Args:
        output_dir: folder, which need not exist.
        seed: 0 to `MAX_SEED`.
        counts: numbers by their arguments' names, at least 1.

    Raises:
        ValueError: if a number is out of range, or `output_dir` is a file.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed ({seed}) must lie in 0..{MAX_SEED}; choose another.")
    root = Path(output_dir)
    if root.exists() and not root.is_dir():
        raise ValueError(f"output_dir ({root}) is a file; name a folder.")
    return root


def earlier_files(root: Path, sample: Collection[str]) -> list[Path]:
    """What an earlier evaluation left in a folder; it goes, so that nothing of it is taken for a part of this one.

    Args:
        root: the folder.
        sample: files that the folder of one image holds.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if not root.is_dir():
        return []
    paths = sorted(root.iterdir())
    for path in paths:
        if path.name not in _FILES and not _is_sample(path, sample):
            raise ValueError(f"output_dir ({root}) holds {path.name}, which is no evaluation's; name another folder.")
    return paths


def _is_sample(path: Path, sample: Collection[str]) -> bool:
    """Whether a path is a numbered folder that holds one image of an evaluation and what belongs to it."""
    if not (path.is_dir() and re.fullmatch(r"\d{5}", path.name)):
        return False
    inside = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    return inside <= set(sample)


def remove(paths: Sequence[Path]) -> None:
    """Removes files and folders."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_report(
    root: Path,
    rows: Sequence[dict[str, Any]],
    *,
    benchmark: str,
    world: str | AnyWorld,
    model: str,
    seed: int,
    judge: str,
    settings: dict[str, Any],
    scores: dict[str, Any],
) -> dict[str, Any]:
    """Writes `results.jsonl`, a line for each of `rows`, and `summary.json`, all the rest, which is returned."""
    (root / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = {
        "benchmark": benchmark,
        "world": world if isinstance(world, str) else asdict(world),
        "model": model,
        "seed": seed,
        "prompt_rewriting": False,
        "judge": judge,
        "settings": settings,
        **scores,
    }
    (root / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
    return report
