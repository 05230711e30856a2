"""`blip3o bench startup`: how long commands take from nothing, as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from blip3o.bench.report import Report
from blip3o.bench.timing import Stopwatch, compare

PYTHON, TORCH = "python -c pass", "python -c 'import torch'"
"""What no command can be faster than."""


def bench_startup(commands: Mapping[str, Sequence[str]] | None = None, *, repeats: int = 5) -> Report:
    """Times commands, and an empty Python for comparison.

    Args:
        commands: by the names they are told by; our own when None.
        repeats: timed rounds.

    Raises:
        ValueError: if a command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        several = own_commands(Path(folder) / "out.png") if commands is None else commands
        sides = {name: partial(_run, name, command) for name, command in several.items()}
        times = compare(sides, repeats, torch.device("cpu"))
    return Report(
        title="startup",
        settings={"repeats": repeats},
        times={name: {"total": stages["total"]} for name, stages in times.items()},
    )


def own_commands(output: Path) -> dict[str, list[str]]:
    """What is measured; `output` is the picture that `blip3o generate` writes."""
    own = [sys.executable, "-m", "blip3o.cli"]
    return {
        PYTHON: [sys.executable, "-c", "pass"],
        TORCH: [sys.executable, "-c", "import torch"],
        "blip3o --help": [*own, "--help"],
        "blip3o --version": [*own, "--version"],
        "blip3o generate": [*own, "generate", "a red circle", "--output", str(output)],
    }


def _run(name: str, command: Sequence[str], watch: Stopwatch) -> None:
    with watch.stage("process"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{name} ended with code {done.returncode}: {done.stderr.strip()}")
