"""The shapes benchmark: held-out captions, one image each, judged by the exact verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from blip3o import __version__
from blip3o.evaluation.output import earlier_files, output_folder, remove, write_report
from blip3o.images import contact_sheet
from blip3o.pipeline import Blip3oPipeline
from blip3o.shapes import summary
from blip3o.shapes.any_world import (
    AnyWorld,
    any_evaluation_captions,
    any_metadata,
    any_result_rows,
    get_any_world,
)
from blip3o.shapes.text import TextWorld

_SAMPLE = frozenset({"metadata.jsonl", "samples/0000.png"})


def evaluate(
    pipe: Blip3oPipeline,
    output_dir: str | Path,
    *,
    model_name: str = "",
    num_captions: int = 600,
    seed: int = 0,
    batch_size: int = 32,
    world: str | AnyWorld = "shapes",
    **settings: Any,
) -> dict[str, Any]:
    """Generates one image a caption in GenEval's layout and scores them.

    Writes `00000/{metadata.jsonl, samples/0000.png}` and so on, `results.jsonl` (one line an image), `summary.json` and
    `sheet.png` with the first 24 pictures. Image i has a generator of its own, so the score does not depend on the
    batch size.

    Args:
        pipe: the pipeline to score.
        output_dir: where to write; created if missing.
        model_name: recorded in the summary.
        num_captions: held-out captions, balanced over the tags.
        seed: picks the captions, 0 to `MAX_SEED`; image i is drawn with `seed * 1_000_000 + i`.
        batch_size: images generated at a time.
        world: world of the captions, of shapes or of words (`text`, `text-mini`), or its name.
        settings: arguments of the pipeline's call.

    Returns:
        The summary.

    Raises:
        ValueError: on a value out of range, or if `output_dir` holds something else than an earlier evaluation.
    """
    root = output_folder(output_dir, seed, num_captions=num_captions, batch_size=batch_size)
    place = get_any_world(world)
    captions = any_evaluation_captions(place, num_captions, seed)
    earlier = earlier_files(root, _SAMPLE)
    names: list[str] = []
    pictures: list[np.ndarray] = []
    for first in range(0, num_captions, batch_size):
        batch = captions[first : first + batch_size]
        generators = [torch.Generator().manual_seed(seed * 1_000_000 + first + i) for i in range(len(batch))]
        images = pipe(batch, generator=generators, **settings).images
        check_size(images[0], world)
        if first == 0:  # only now is it sure that the arguments are good
            remove(earlier)
        for index, (caption, image) in enumerate(zip(batch, images, strict=True), start=first):
            name = f"{index:05d}/samples/0000.png"
            _write_sample(root, index, name, image, any_metadata(caption, place))
            names.append(name)
            pictures.append(np.asarray(image))
    rows = any_result_rows(np.stack(pictures), captions, names, place)
    contact_sheet(np.stack(pictures[:24]), captions[:24], columns=6, scale=2).save(root / "sheet.png")
    return write_report(
        root,
        rows,
        benchmark="shapes",
        world=world,
        model=model_name,
        seed=seed,
        judge=f"blip3o.shapes.{'verify_text' if isinstance(place, TextWorld) else 'verify'} {__version__}",
        settings=pipe.defaults.updated(**settings).given(),
        scores=summary(rows),
    )


def check_size(image: Image.Image, world: str | AnyWorld) -> None:
    """Raises a ValueError unless a picture has the size of a world's, without which it can not be verified."""
    side = get_any_world(world).canvas
    if image.size != (side, side):
        raise ValueError(
            f"world ({world if isinstance(world, str) else 'of your own'}) has pictures of {side} pixels a side, but "
            f"the model makes {image.width}; choose the world that it was trained on."
        )


def print_summary(report: dict[str, Any], output_dir: Path) -> None:
    """Prints the scores with their 95 % intervals, and where the files are."""
    table = Table(title=f"shapes, {report['num_images']} held-out captions, model {report['model']}")
    for column in ("tag", "score", "95 % interval", "correct"):
        table.add_column(column, justify="left" if column == "tag" else "right")
    for tag, score in report["tags"].items():
        low, high = score["interval"]
        table.add_row(
            tag, f"{score['mean']:.3f}", f"{low:.3f} - {high:.3f}", f"{score['num_correct']}/{score['num_images']}"
        )
    low, high = report["overall"]["interval"]
    table.add_row("overall", f"{report['overall']['mean']:.3f}", f"{low:.3f} - {high:.3f}", "", style="bold")
    console = Console()
    console.print(table)
    console.print(f"written to {output_dir}", highlight=False, soft_wrap=True)


def _write_sample(root: Path, index: int, name: str, image: Image.Image, record: dict[str, Any]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    (root / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps(record) + "\n")
