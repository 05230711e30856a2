"""Two processes on real mixed batches: they share the rows, take one step together and resume where both stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *args: object) -> None:
    words = [sys.executable, "-m", "tests.data.two_processes", str(folder), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def told(folder: Path, name: str) -> list[Any]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_share_mixed_batches_and_resume(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, tmp_path / "2.ckpt")
    whole, resumed = told(tmp_path, "whole"), told(tmp_path, "resumed")
    for rank in range(2):
        assert len(whole[rank]["keys"]) == 5
        assert resumed[rank]["keys"] == whole[rank]["keys"][2:]
    assert whole[0]["weights"] == whole[1]["weights"] == resumed[0]["weights"] == resumed[1]["weights"]
    early = [key for rank in whole for batch in rank["keys"][:2] for key in batch]
    assert len(set(early)) == len(early) == 8
    kinds = [{key.startswith("edit") for key in batch} for rank in whole for batch in rank["keys"]]
    assert {True} in kinds or {False} in kinds, "one process had no edit, or nothing else, in some batch"
