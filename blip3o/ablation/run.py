"""`python -m blip3o.ablation.run FOLDER`: one run, in a process of its own, from `run.json` to `result.json`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from blip3o.ablation.files import locked, read_json, write_json, write_text
from blip3o.ablation.measure import count_parameters, draw_samples, generation_speed, peak_memory, surroundings
from blip3o.ablation.metrics import build_metric
from blip3o.ablation.runs import FAILURE, PROGRESS, RESULT, SETTINGS, redirected
from blip3o.pipeline import Blip3oPipeline
from blip3o.shapes import evaluation_captions, get_world
from blip3o.training.cli import TrainingCLI
from blip3o.training.cli import run as train
from blip3o.training.recording import Recorder

NUM_SAMPLES = 6
_LAST = 0.1  # share of the records over which the final training losses are averaged


def main(argv: Sequence[str] | None = None) -> int:
    """Does the run of a folder, unless it is done."""
    parser = argparse.ArgumentParser(prog="python -m blip3o.ablation.run", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with run.json")
    parser.add_argument("--parent", type=int, help="process without which this one ends")
    parser.add_argument("--jobs", type=int, help="runs that may share this machine, which its result then says")
    options = parser.parse_args(argv)
    helper = int(os.environ.get("LOCAL_RANK", 0)) > 0  # of a run on several devices, started by Lightning
    # Lightning gives a helper its own command line; what started the helper is not the process named there.
    parent = os.getppid() if helper else options.parent
    if parent is not None:
        threading.Thread(target=_watch, args=[parent], daemon=True).start()
    if helper:
        _fit(options.folder)
        return 0
    # Whoever did this run before and was cut off from its runner may still be about to end.
    with locked(options.folder / ".lock", wait=True):
        if read_json(options.folder / RESULT) is None:
            do(options.folder, options.jobs)
    return 0


def _watch(parent: int) -> None:
    """Ends this process at once when its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(3)


def do(folder: Path, jobs: int | None = None) -> dict[str, Any]:
    """Trains, scores and measures; returns what `result.json` holds.

    Args:
        folder: of the run.
        jobs: runs that may share this machine; None where nobody knows.
    """
    started = time.time()
    settings = read_json(folder / SETTINGS)
    (folder / FAILURE).unlink(missing_ok=True)
    for name in ("metrics", "samples", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    cli, recorder = _fit(folder)
    module = cli.model
    result: dict[str, Any] = {
        "id": folder.name,
        "seed": settings["config"]["seed_everything"],
        "steps": cli.trainer.global_step,
        "losses": final_losses(recorder.curve),
        "parameters": count_parameters(module),
        "flops_per_step": recorder.flops,
        "timings": {
            "train_seconds": recorder.seconds,
            "train_images_per_second": recorder.rows / recorder.seconds_per_step,
        },
        "curve": recorder.curve,
        "scores": {},
        "prompts": {},
        "samples": [],
    }
    if hasattr(module, "generation_defaults"):
        # Quality and speed are those of the same settings.
        benchmark = _benchmark(settings)
        defaults = replace(module.generation_defaults, **(benchmark.get("settings") or {}))
        pipe = Blip3oPipeline(module.model.to(cli.trainer.strategy.root_device), defaults)
        _judge(pipe, settings, folder, result)
        captions = _captions(cli, benchmark)
        if captions:
            result["timings"] |= generation_speed(pipe, captions)
            names = draw_samples(pipe, captions, folder / "samples", benchmark.get("seed", 0))
            result["samples"] = [[f"samples/{name}", one] for name, one in zip(names, captions, strict=True)]
        if settings["keep_model"]:
            pipe.save_pretrained(folder / "model")
    result["timings"] |= peak_memory()
    result |= surroundings()
    result["jobs"] = jobs
    result["timings"]["wall_seconds"] = time.time() - started
    result["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
    write_json(folder / RESULT, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _fit(folder: Path) -> tuple[TrainingCLI, Recorder]:
    """Trains as `blip3o fit` does, from the last checkpoint where a run that was killed left one."""
    config = redirected(read_json(folder / SETTINGS)["config"], folder)
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=120))
    recorder = Recorder(folder / PROGRESS)
    args = ["fit", "--config", str(folder / "config.yaml")]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        try:
            torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
            args += ["--ckpt_path", str(checkpoint)]
        except Exception as error:  # cut off while it was written: whatever torch makes of that
            print(f"{checkpoint} can not be read ({error}); the run starts anew.", file=sys.stderr)
            checkpoint.unlink()
    elif not int(os.environ.get("LOCAL_RANK", 0)):  # a helper finds the log that the first process has begun
        shutil.rmtree(folder / "log", ignore_errors=True)
    return train(args, [recorder]), recorder


def _judge(pipe: Blip3oPipeline, settings: dict[str, Any], folder: Path, result: dict[str, Any]) -> None:
    """Adds scores and results by prompt."""
    for name, description in settings["metrics"].items():
        place = folder / "metrics" / name
        place.mkdir(parents=True)
        scores = build_metric(description).measure(pipe, place)
        result["scores"] |= {f"{name}/{key}": float(value) for key, value in scores.values.items()}
        result["prompts"][name] = [[one.prompt, one.tag, float(one.value)] for one in scores.prompts]


def _benchmark(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the shapes benchmark; empty where the plan has none, whatever another metric is called."""
    shapes = settings["metrics"].get("shapes", {})
    ours = shapes.get("class_path") == "blip3o.ablation.metrics.ShapesMetric"
    return dict(shapes.get("init_args") or {}) if ours else {}


def _captions(cli: TrainingCLI, benchmark: dict[str, Any]) -> list[str]:
    """Captions to draw and to time: the benchmark's first, or else those that the data would draw."""
    if benchmark:
        place = get_world(benchmark.get("world", "shapes"))
        return evaluation_captions(place, NUM_SAMPLES, benchmark.get("seed", 0))
    return list(getattr(cli.datamodule, "prompts", []))[:NUM_SAMPLES]


def final_losses(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Training metrics averaged over the last tenth of the records, and the last of each validation metric."""
    training = [row for row in curve if any(name.startswith("train/") for name in row)]
    tail = training[-max(1, round(_LAST * len(training))) :]
    losses = {}
    for name in sorted({name for row in tail for name in row if name.startswith("train/")}):
        values = [row[name] for row in tail if name in row]
        losses[name] = sum(values) / len(values)
    for row in curve:
        losses |= {name: value for name, value in row.items() if name.startswith("val/")}
    return losses


if __name__ == "__main__":
    sys.exit(main())
