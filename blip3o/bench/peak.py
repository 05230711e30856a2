"""Two training steps of one side, and the most memory that this process held: `python -m blip3o.bench.peak JSON`."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import torch

from blip3o.bench.shapes import build
from blip3o.bench.timing import Stopwatch
from blip3o.bench.train import TrainingBench


def main() -> None:
    """Prints bytes."""
    side, shape, batch_size, supervise, again, device, dtype = json.loads(sys.argv[1])
    measured = build(shape, batch_size)
    measured.model.to(device)
    lowered = None if dtype == "float32" else getattr(torch, dtype)
    bench = TrainingBench(measured, supervise, lowered, gradient_checkpointing=again)
    loss = bench.sides[side]
    for _ in range(2):
        bench.step(loss, Stopwatch(torch.device(device)))
    if device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated())
        return
    print(most_resident())


def most_resident(status: Path = Path("/proc/self/status")) -> int:
    """The most bytes that this process had in memory.

    Linux tells it in `status`; what `getrusage` tells there includes the process that started this one.
    """
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), flags=re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
