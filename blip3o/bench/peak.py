"""Two training steps of one side, and the most memory that this process held: `python -m blip3o.bench.peak JSON`."""

from __future__ import annotations

import json
import resource
import sys

import torch

from blip3o.bench.shapes import build
from blip3o.bench.timing import Stopwatch
from blip3o.bench.train import TrainingBench


def main() -> None:
    """Prints bytes."""
    side, shape, batch_size, supervise, device, dtype = json.loads(sys.argv[1])
    measured = build(shape, batch_size)
    measured.model.to(device)
    bench = TrainingBench(measured, supervise, None if dtype == "float32" else getattr(torch, dtype))
    loss = bench.sides[side]
    for _ in range(2):
        bench.step(loss, Stopwatch(torch.device(device)))
    if device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated())
        return
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(most if sys.platform == "darwin" else most * 1024)  # Linux counts kilobytes


if __name__ == "__main__":
    main()
