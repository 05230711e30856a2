"""Measures Jacobi decoding against sequential decoding: tokens of a pass, and time an image.

Run from the repository: `python docs/performance/measure_jacobi.py`, see `--help`. It prints the table of
docs/performance/jacobi.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from blip3o import Blip3oPipeline
from blip3o.ar import Sampling
from blip3o.model import Blip3oNext
from blip3o.shapes import evaluation_captions, get_world

HEADER = ("sampling", "batch", "decoding", "tokens a pass", "passes a batch", "ms an image", "speedup")


def measure(
    model: Blip3oNext, captions: list[str], batch_size: int, sampling: Sampling, guidance: float, repeats: int
) -> tuple[float, float, float]:
    """Tokens that a row gets of a pass, passes of a batch, and milliseconds an image, the median of the repeats.

    On the CPU, time is that of the processor, which other programs disturb little; elsewhere, that of the clock.
    """
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    own, longest, taken = 0, [], []
    for repeat in range(1 + repeats):  # first, a batch alone to warm up
        start, own, longest = clock(), 0, []
        for first in range(0, len(captions) if repeat else 1, batch_size):
            some = captions[first : first + batch_size]
            generator = [torch.Generator().manual_seed(first + row) for row in range(len(some))]
            tokens = model.write(some, sampling=sampling, generator=generator, token_guidance_scale=guidance)
            assert tokens.num_forwards is not None
            own += int(tokens.num_forwards.sum())  # it waits for the device
            longest.append(int(tokens.num_forwards.max()))
        if repeat:
            taken.append(clock() - start)
    total = len(captions) * model.tokenizer.num_tokens()
    return total / own, sum(longest) / len(longest), sorted(taken)[len(taken) // 2] / len(captions) * 1e3


def main() -> None:
    """Prints a row for each kind of sampling, batch size and window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="bundled name, folder or hub id (default: tiny)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], help="images at a time (default: 1 8)")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 32], help="default: 8 16 32")
    parser.add_argument("--num_images", type=int, default=16, help="held-out captions of shapes (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is told (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = Blip3oPipeline.from_pretrained(options.model, device=options.device)
    captions = evaluation_captions(get_world("shapes"), options.num_images, 0)
    guidance = pipe.defaults.token_guidance_scale
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for name, sampling in (("greedy", Sampling(temperature=0.0)), ("default", pipe.defaults.sampling)):
        for batch_size in options.batch_sizes:
            jacobi = [replace(sampling, decoding="jacobi", jacobi_window=window) for window in options.windows]
            baseline = 0.0
            for one in (replace(sampling, decoding="sequential"), *jacobi):
                tokens, passes, ms = measure(pipe.model, captions, batch_size, one, guidance, options.repeats)
                baseline = baseline or ms
                told = f"jacobi, {one.jacobi_window}" if one.decoding == "jacobi" else "sequential"
                numbers = f"{tokens:.2f} | {passes:.1f} | {ms:.1f} | {baseline / ms:.2f}"
                print(f"| {name} | {batch_size} | {told} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
