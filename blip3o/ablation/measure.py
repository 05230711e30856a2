"""What a trained model costs, and a few pictures of it."""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip3o import __version__
from blip3o.images import save_png
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline

_PACKAGES = ("torch", "lightning", "transformers", "diffusers", "numpy")


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Parameters of each part of a module, `total`, and how many of them train (`trainable`)."""
    model = getattr(module, "model", module)
    parts = model.parts() if isinstance(model, Blip3oNext) else dict(model.named_children())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts["total"] = sum(p.numel() for p in model.parameters())
    counts["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts


def generation_speed(
    pipe: Blip3oPipeline, captions: Sequence[str], *, repeats: int = 5, batch_size: int = 16
) -> dict[str, float]:
    """Seconds for one picture alone (median of `repeats`), and pictures a second in a batch; both after a warm-up."""

    def timed(prompts: list[str]) -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        start = time.perf_counter()
        pipe(prompts, generator=generators, output_type="pt")
        if pipe.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed([captions[0]])
    alone = statistics.median(timed([captions[index % len(captions)]]) for index in range(repeats))
    batch = [captions[index % len(captions)] for index in range(batch_size)]
    timed(batch)
    return {"latency_seconds": alone, "images_per_second": batch_size / min(timed(batch) for _ in range(2))}


def draw_samples(pipe: Blip3oPipeline, captions: Sequence[str], folder: Path, seed: int) -> list[str]:
    """Writes `0.png`, `1.png`, ... for captions; returns these names.

    Tokens of picture i are drawn with a generator of `seed + i`, and its initial noise with another one, so that all
    models whose latents have one shape start from the same noise. A head that reads the tokens themselves has no
    noise to start from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + len(captions))
    noise = None
    if pipe.model.diffusion.reads == "condition":
        shape = pipe(captions[0], num_inference_steps=1, output_type="latent").latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(one + 2**32)) for one in seeds])
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    images = pipe(list(captions), generator=generators, latents=noise).images
    names = []
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        names.append(f"{index}.png")
        save_png(image, folder / names[-1], {"prompt": caption, "seed": seeds[index], **pipe.defaults.given()})
    return names


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far, in bytes; of the GPU too where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def surroundings() -> dict[str, Any]:
    """Versions, the state of the code, and the machine."""
    return {
        "versions": {
            "blip3o": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "git": git_state(Path(__file__).parent),
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
    }


def git_state(folder: Path) -> str:
    """The commit of the repository around a folder, with `+changes` if tracked files differ; `none` without git."""
    command = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        clean = subprocess.run([*command, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode == 0
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return commit.stdout.strip() + ("" if clean else "+changes")
