"""`blip3o data encode`: runs the frozen encoders over an experiment's rows once, and keeps what they gave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blip3o.data.images import ImageDataModule
from blip3o.data.rows import held_out_batches, training_batches
from blip3o.data.shard_writer import ShardWriter
from blip3o.data.shards import INDEX, LATENT_DTYPES, EncodedIndex, EncodedRows, Split, read_index, write_json
from blip3o.data.stream import Row
from blip3o.model import Blip3oNext
from blip3o.shapes import WORLDS
from blip3o.training.cli import build
from blip3o.training.fingerprint import codec_of, fingerprint
from blip3o.training.joint import JointModule

SETTINGS = "encoding.json"
"""What a folder is being encoded from and how; written first, so that only the same call goes on with it."""


def encode_data(
    config: Path, output_dir: Path, *, num_rows: int | None = None, shard_size: int = 1000, dtype: str = "float32"
) -> EncodedIndex:
    """Writes the image token ids and normalised latents of an experiment's rows, for `EncodedDataModule`.

    The encoders are those that `blip3o fit` would train with, in the precision that their weights have, on the
    trainer's device. Rows are encoded in the data module's batches. A call that was stopped is finished by the same
    call: shards that are whole are kept, and their rows read but not encoded again.

    Args:
        config: an experiment of `blip3o fit` with a `JointModule`.
        output_dir: folder to write; new, empty, or one that the same call began.
        num_rows: training rows; all of one pass when None, where the data ends.
        shard_size: rows a tar.
        dtype: of stored latents; `float32` loses nothing.

    Raises:
        ValueError: if an argument is out of range, the experiment does not build or trains something else, its head
            needs pixels, its rows are edits, or the folder holds something else.
    """
    for name, value in (("num_rows", 1 if num_rows is None else num_rows), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")
    if dtype not in LATENT_DTYPES:
        raise ValueError(f"dtype ({dtype}) must be one of {', '.join(LATENT_DTYPES)}.")
    values = _read(config)
    built = build(values)
    if not isinstance(built.model, JointModule):
        raise ValueError(
            f"config ({config}) trains a {type(built.model).__name__}; only a JointModule trains on encoded rows."
        )
    model, data = built.model.model, built.datamodule
    settings = {
        "encoders": {"tokenizer": fingerprint(model.tokenizer), "codec": fingerprint(codec_of(model.diffusion))},
        "num_rows": num_rows,
        "shard_size": shard_size,
        "dtype": dtype,
        "data": json.loads(json.dumps(values["data"], default=str)),
    }
    console = Console()
    if _begin(output_dir, settings):
        console.print(f"{output_dir} is encoded already", highlight=False, soft_wrap=True)
        return read_index(output_dir)
    if num_rows is None and isinstance(data, ImageDataModule) and len(data.sources) > 1:
        console.print("every row of each source once, whatever its weight; with --num_rows the weights hold")
    encoder = Encoder(model.eval(), built.trainer.strategy.root_device)
    shards: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    batches: dict[Split, Iterator[Row]] = {
        "train": training_batches(data, num_rows),
        "val": held_out_batches(data, "val"),
        "test": held_out_batches(data, "test"),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for split, rows in batches.items():
            task = progress.add_task(split, total=num_rows if split == "train" else None)
            writer = ShardWriter(output_dir, split, shard_size, getattr(torch, dtype))
            encode = partial(encoder, keep_images=split != "train")
            for batch in rows:
                writer.add(batch, encode)
                progress.advance(task, len(batch["index"]))
            shards[split], counts[split] = writer.finish()
    if not counts["train"]:
        raise ValueError(f"config ({config}) has no training row to encode; see `blip3o data check`.")
    index = EncodedIndex(
        folder=output_dir,
        encoders=settings["encoders"],
        image_size=model.diffusion.image_size,
        num_tokens=model.tokenizer.num_tokens(),
        latent_shape=[],
        dtype=dtype,
        num_rows=counts,
        shards=shards,
        prompts=list(getattr(data, "prompts", [])),
        world=next((name for name, world in WORLDS.items() if world == getattr(data, "world", None)), None),
        data=settings["data"],
    )
    # Told by a row: with a folder that was finished but for its index, nothing is encoded here.
    index = replace(index, latent_shape=list(EncodedRows(index, "train")[0]["latents"].shape))
    index.write()
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    console.print(f"written to {output_dir}: {told} rows", highlight=False, soft_wrap=True)
    return index


@dataclass
class Encoder:
    """A model's image tokenizer and codec.

    Attributes:
        model: the model.
        device: to encode on.
    """

    model: Blip3oNext
    device: torch.device

    def __post_init__(self) -> None:
        """Puts both on the device."""
        self.model.tokenizer.to(self.device)
        self.model.diffusion.to(self.device)

    @torch.no_grad()
    def __call__(self, batch: Row, *, keep_images: bool) -> list[Row]:
        """The rows of a batch with `image_ids` and `latents`, and with `image` where that is to be kept.

        Raises:
            ValueError: if it holds edits, no pictures or captions, or pictures of another size than the head's.
        """
        if missing := [name for name in ("index", "caption", "image") if name not in batch]:
            raise ValueError(
                f"the data gives batches of {sorted(batch)}, without {missing}; there is nothing to encode."
            )
        if "references" in batch:
            raise ValueError(
                "the data holds edits, whose reference images are not encoded; leave their sources out, and train "
                "edits on pictures."
            )
        images = batch["image"].to(self.device)
        side = self.model.diffusion.image_size
        if side is not None and images.shape[2:] != (side, side):
            raise ValueError(
                f"the data's pictures have shape {tuple(images.shape[1:])}, but the diffusion head's image_size is "
                f"{side}; make them one."
            )
        ids = self.model.tokenizer.encode(batch.get("token_image", images).to(self.device)).ids.cpu()
        latents = self.model.diffusion.encode(images).cpu()
        kept = ("index", "caption", "key", "num_references", *(["image"] if keep_images else []))
        columns = {name: batch[name] for name in kept if name in batch}
        rows = [
            {name: values[row] for name, values in columns.items()} | {"image_ids": ids[row], "latents": latents[row]}
            for row in range(len(ids))
        ]
        return [row | {name: int(row[name]) for name in ("index", "num_references") if name in row} for row in rows]


def _read(config: Path) -> dict[str, Any]:
    """The content of an experiment.

    Raises:
        ValueError: if there is no such file, or it lacks model or data.
    """
    try:
        values = yaml.safe_load(config.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"config ({config}) can not be read: {error}") from error
    if not isinstance(values, dict) or any(not values.get(name) for name in ("model", "data")):
        raise ValueError(f"config ({config}) must have the sections 'model' and 'data'; pass an experiment.")
    return values


def _begin(folder: Path, settings: dict[str, Any]) -> bool:
    """Makes the folder this call's; returns whether it is encoded to its end.

    Raises:
        ValueError: if it holds something else, or what a call with other arguments began.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir ({folder}) is a file; name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.part"):  # by a call that was killed
        left.unlink()
    mark = folder / SETTINGS
    if mark.is_file() and any(folder.glob("*.tar")):
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{mark} can not be read ({error}); remove output_dir ({folder}).") from error
        if others := [name for name in settings if found.get(name) != settings[name]]:
            raise ValueError(
                f"output_dir ({folder}) was encoded with other {', '.join(others)}; name another folder, or remove it."
            )
        return (folder / INDEX).is_file()
    if any(path != mark for path in folder.iterdir()):
        raise ValueError(f"output_dir ({folder}) holds files that are no encoded data; name a new or empty folder.")
    write_json(mark, settings)
    return False
