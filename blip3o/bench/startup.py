"""`blip3o bench startup`: how long commands take from nothing, as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from blip3o.bench.report import Report
from blip3o.bench.timing import Stopwatch, compare

PYTHON, TORCH = "python -c pass", "python -c 'import torch'"
"""What no command can be faster than."""


def bench_startup(*, repeats: int = 5) -> Report:
    """Times commands, and an empty Python for comparison.

    Args:
        repeats: timed rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "out.png")
        own = [sys.executable, "-m", "blip3o.cli"]
        commands = {
            PYTHON: [sys.executable, "-c", "pass"],
            TORCH: [sys.executable, "-c", "import torch"],
            "blip3o --help": [*own, "--help"],
            "blip3o --version": [*own, "--version"],
            "blip3o generate": [*own, "generate", "a red circle", "--output", output],
        }

        def run(command: list[str], watch: Stopwatch) -> None:
            with watch.stage("process"):
                subprocess.run(command, capture_output=True, check=True)

        sides = {name: lambda watch, command=command: run(command, watch) for name, command in commands.items()}
        times = compare(sides, repeats, torch.device("cpu"))
    return Report(
        title="startup",
        settings={"repeats": repeats},
        times={name: {"total": stages["total"]} for name, stages in times.items()},
    )
