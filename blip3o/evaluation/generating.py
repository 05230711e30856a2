"""The first stage of an editing benchmark: the model's edits, one PNG an item; a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip3o.ablation.files import write_json
from blip3o.evaluation.edits import EditBenchmark, EditItem
from blip3o.evaluation.progress import progress
from blip3o.images import read_settings, save_png
from blip3o.pipeline import Blip3oPipeline

MAX_SEED = 10**12
RECORD = "generation.json"


def generate_edits(
    pipe: Blip3oPipeline,
    benchmark: EditBenchmark,
    output_dir: str | Path,
    *,
    model_name: str = "",
    num_items: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    **settings: float | int | str,
) -> int:
    """Edits every picture of a benchmark that has no result yet.

    Writes each edited picture where the benchmark wants it, whole or not at all, and `generation.json` with all that
    decides the pictures. Item i has a generator of its own, so that neither the batch size nor a stop changes them.

    Args:
        pipe: the pipeline to score.
        benchmark: what to edit.
        output_dir: where to write; created if missing.
        model_name: recorded.
        num_items: only the first so many items; all when None.
        seed: 0 to `MAX_SEED`; item i is drawn with `seed * 1_000_000 + i`.
        batch_size: pictures edited at a time.
        settings: arguments of the pipeline's call.

    Returns:
        How many pictures were made now.

    Raises:
        ValueError: on a value out of range, if a picture can not be read, or if `output_dir` holds pictures made
            otherwise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed ({seed}) must lie in 0..{MAX_SEED}; choose another.")
    root = Path(output_dir)
    check_folder(root)
    items = first_items(benchmark, num_items)
    record = {
        "benchmark": benchmark.name,
        "model": model_name,
        "seed": seed,
        "prompt_rewriting": False,
        "settings": pipe.defaults.updated(**settings).given(),
    }
    _check_earlier(root, items, record)
    missing = [item for item in items if not (root / item.output).exists()]
    with progress(len(missing), "editing") as advance:
        written = False
        for batch, pictures in _batches(pipe, missing, batch_size):
            images = pipe(
                [item.instruction for item in batch],
                image=pictures,
                generator=[torch.Generator().manual_seed(seed * 1_000_000 + item.index) for item in batch],
                **settings,  # type: ignore[arg-type]
            ).images
            if not written:  # only now is it sure that the arguments are good
                write_json(root / RECORD, record)
                written = True
            for item, image in zip(batch, images, strict=True):
                path = root / item.output
                path.parent.mkdir(parents=True, exist_ok=True)
                save_png(image, path, {**record, **_item_record(item)})
                advance()
    return len(missing)


def _batches(
    pipe: Blip3oPipeline, items: Sequence[EditItem], batch_size: int
) -> Iterator[tuple[list[EditItem], list[Image.Image]]]:
    """The items in their order with their pictures, those of a batch parted by the size that their edits have."""
    head = pipe.model.diffusion
    for first in range(0, len(items), batch_size):
        pictures = [(item, item.picture()) for item in items[first : first + batch_size]]
        sizes = [head.size_for(picture.height, picture.width) for _, picture in pictures]
        for size in dict.fromkeys(sizes):
            some = [pair for pair, own in zip(pictures, sizes, strict=True) if own == size]
            yield [item for item, _ in some], [picture for _, picture in some]


def check_folder(root: Path) -> None:
    """Raises a ValueError where a file is in the way of a folder."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"output_dir ({root}) is a file; name a folder.")


def first_items(benchmark: EditBenchmark, num_items: int | None) -> list[EditItem]:
    """The first items of a benchmark.

    Raises:
        ValueError: if `num_items` is below 1.
    """
    if num_items is not None and num_items < 1:
        raise ValueError(f"num_items ({num_items}) must be at least 1; leave it out for all.")
    return benchmark.items[:num_items]


def read_record(root: Path) -> dict[str, Any] | None:
    """What `generate_edits` recorded of a folder; None where other means made its pictures.

    Raises:
        ValueError: if the record is damaged.
    """
    path = root / RECORD
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} can not be read: {error}; name another folder.") from error


def _check_earlier(root: Path, items: list[EditItem], record: dict[str, Any]) -> None:
    """Raises a ValueError unless what a folder holds was made with the same model, seed and settings."""
    earlier = read_record(root)
    if earlier is None:
        found = [item.output for item in items if (root / item.output).exists()]
        if found:
            raise ValueError(
                f"output_dir ({root}) holds {len(found)} pictures, such as {found[0]}, and no {RECORD} that says how "
                "they were made; name another folder, or only judge them."
            )
        return
    known: dict[str, Any] = json.loads(json.dumps(record))
    if others := [name for name in known if earlier.get(name) != known[name]]:
        had = ", ".join(f"{name} {json.dumps(earlier.get(name))}" for name in others)
        now = ", ".join(f"{name} {json.dumps(known[name])}" for name in others)
        raise ValueError(f"output_dir ({root}) holds pictures of {had}, not of {now}; name another folder.")
    for item in items:
        path = root / item.output
        if path.exists() and read_settings(path) != {**known, **_item_record(item)}:
            raise ValueError(f"{path} was not made for {item.place}; name another folder, or move the picture away.")


def _item_record(item: EditItem) -> dict[str, Any]:
    return {"key": item.key, "index": item.index, "prompt": item.instruction}
