"""Milliseconds a token of the ordinary and the compiled step: `python docs/performance/measure_decoding.py [SHAPE]`.

With `profile` after the shape, what the ordinary step does with a token at batch 1 instead, operation by operation.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from blip3o.ar.base import Sampling
from blip3o.bench.shapes import Measured, build

ROUNDS = 3


def write(measured: Measured) -> float:
    """Milliseconds a token that every row of a batch takes, the prompt's pass included."""
    start = time.perf_counter()
    measured.model.write(measured.captions, sampling=Sampling(), generator=torch.Generator().manual_seed(0))
    return (time.perf_counter() - start) / measured.model.tokenizer.num_tokens() * 1e3


def compare(shape: str, dtype: torch.dtype) -> None:
    """Both steps in turns, batch by batch, on one model."""
    for batch in (1, 2, 4, 8, 16):
        measured = build(shape, batch)
        measured.model.to(dtype)
        ar = measured.model.ar
        ar.compile_decoding()
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS + 1):
            for compiled, times in taken.items():
                ar._compiled = compiled
                times.append(write(measured))
        ordinary, compiled_ms = (median(times[1:]) for times in taken.values())
        print(f"batch {batch}: ordinary {ordinary:.2f} ms a token, compiled {compiled_ms:.2f}")


def told(shape: str, dtype: torch.dtype) -> None:
    """The ordinary step's operations."""
    measured = build(shape, 1)
    measured.model.to(dtype)
    write(measured)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        print(f"{write(measured):.2f} ms a token")
    tokens = measured.model.tokenizer.num_tokens()
    every = sorted(seen.key_averages(), key=lambda one: -one.self_cpu_time_total)
    for one in every[:12]:
        print(f"{one.key:45} {one.self_cpu_time_total / tokens / 1e3:6.3f} ms, {one.count / tokens:6.1f} calls a token")


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "mid"
    precision = torch.float32 if name == "tiny" else torch.bfloat16
    (told if "profile" in sys.argv[2:] else compare)(name, precision)
