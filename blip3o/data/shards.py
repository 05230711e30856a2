"""Folders of encoded rows: webdataset tars that are written whole or not at all, read at any row.

A row is `NUMBER.json` (index, caption and the like) and `NUMBER.safetensors` (`image_ids`, `latents`), with
`NUMBER.png` where its picture is kept. Beside `train-000000.tar` lies `train-000000.json`, which says where its files
begin. The folder's `index.json` comes last: without it the folder is not finished.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import Dataset

from blip3o.data.stream import Row
from blip3o.pixels import to_tensor

INDEX = "index.json"
LATENT_DTYPES = ("float32", "bfloat16", "float16")
_FORMAT = 1

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class EncodedIndex:
    """What an encoded folder says of itself.

    Attributes:
        folder: where it is.
        encoders: `config` and `sha256` (of the weights) of the `tokenizer` and the `codec`.
        image_size: side in pixels of the pictures that the codec saw, where the head has one.
        num_tokens: image tokens a row.
        latent_shape: channels, rows and columns of the latents.
        dtype: that latents are stored in.
        num_rows: rows of every split.
        shards: tars of every split, in the order of their rows.
        prompts: captions to draw in prediction.
        world: name of the shapes world that the rows come from, None for any other data.
        data: the `data` section that was encoded.
    """

    folder: Path
    encoders: dict[str, Any]
    image_size: int | None
    num_tokens: int
    latent_shape: list[int]
    dtype: str
    num_rows: dict[str, int]
    shards: dict[str, list[str]]
    prompts: list[str]
    world: str | None
    data: dict[str, Any]

    def write(self) -> None:
        """Writes `index.json`."""
        values = {"format": _FORMAT, **asdict(self)}
        del values["folder"]
        write_json(self.folder / INDEX, values)

    def nbytes(self, split: Split) -> int:
        """Bytes of a split's ids and latents in memory."""
        size = torch.empty(0, dtype=getattr(torch, self.dtype)).itemsize
        return self.num_rows[split] * (4 * self.num_tokens + size * int(np.prod(self.latent_shape)))


def read_index(folder: str | Path) -> EncodedIndex:
    """The index of an encoded folder.

    Raises:
        ValueError: if there is none, which a stopped encode leaves out, or it can not be read.
    """
    folder = Path(folder)
    remedy = f"run `blip3o data encode CONFIG --output_dir {folder}`"
    try:
        values = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        told = "is not encoded to its end" if folder.is_dir() else "does not exist"
        raise ValueError(f"folder ({folder}) {told}: it has no {INDEX}; {remedy}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"folder ({folder}) has an {INDEX} that can not be read ({error}); {remedy} anew.") from error
    if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
        raise ValueError(f"folder ({folder}) has an {INDEX} of another format; {remedy} anew.")
    return EncodedIndex(folder=folder, **values)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of this process to write, which takes the place of `path` if the block ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON through a file that takes the place of `path` when whole."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_places(path: Path) -> dict[str, Any] | None:
    """What lies where in a tar (`rows`, `files`, `places`), or None unless it is whole."""
    try:
        told = json.loads(places_of(path).read_text(encoding="utf-8"))
        return dict(told) if path.stat().st_size == told["bytes"] else None
    except (OSError, ValueError):
        return None


class EncodedRows(Dataset[Row]):
    """The rows of a split, at random access.

    Args:
        index: of the folder.
        split: which rows.
        in_memory: whether to hold ids and latents in memory instead of reading every row from its tar.

    Raises:
        ValueError: if a tar is missing or not whole.
    """

    def __init__(self, index: EncodedIndex, split: Split, *, in_memory: bool = False) -> None:
        self._paths = [index.folder / name for name in index.shards[split]]
        self._files: list[list[str]] = []
        self._places: list[np.ndarray] = []
        for path in self._paths:
            told = read_places(path)
            if told is None:
                raise ValueError(
                    f"{path} is missing or not whole; copy it again, or remove {path.parent / INDEX} and run `blip3o "
                    "data encode` with the same arguments: it makes what is missing."
                )
            self._files.append(told["files"])
            self._places.append(np.array(told["places"], dtype=np.int64).reshape(told["rows"], -1, 2))
        self._ends = np.cumsum([len(places) for places in self._places])
        self._notes: list[Row] = []
        self._held: tuple[Tensor, Tensor] | None = None
        if in_memory:
            self._hold()

    def __len__(self) -> int:
        """How many."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Row:
        """`index`, `caption`, `image_ids` (N,) int64, `latents` (c, h, w) float32, and what else `pack` was given."""
        if self._held is not None:
            row = {**self._notes[number], "image_ids": self._held[0][number], "latents": self._held[1][number]}
        else:
            shard = int(np.searchsorted(self._ends, number, side="right"))
            place = number - int(self._ends[shard]) + len(self._places[shard])
            with self._paths[shard].open("rb") as file:
                files = {}
                for extension, (offset, size) in self._places_of_row(shard, place):
                    file.seek(offset)
                    files[extension] = file.read(size)
            row = _unpack(files)
        return {**row, "image_ids": row["image_ids"].long(), "latents": row["latents"].float()}

    def _places_of_row(self, shard: int, place: int) -> list[tuple[str, list[int]]]:
        return list(zip(self._files[shard], self._places[shard][place].tolist(), strict=True))

    def _hold(self) -> None:
        ids, latents = [], []
        for shard, path in enumerate(self._paths):
            content = path.read_bytes()
            for place in range(len(self._places[shard])):
                spans = self._places_of_row(shard, place)
                row = _unpack({extension: content[offset : offset + size] for extension, (offset, size) in spans})
                ids.append(row.pop("image_ids"))
                latents.append(row.pop("latents"))
                self._notes.append(row)
        if ids:
            self._held = torch.stack(ids), torch.stack(latents)


def _unpack(files: Mapping[str, bytes]) -> Row:
    row: Row = json.loads(files["json"]) | load(files["safetensors"])
    if "png" in files:
        row["image"] = to_tensor(np.array(Image.open(io.BytesIO(files["png"]))))
    return row


def places_of(path: Path) -> Path:
    """The file that says what lies where in a tar; it is written after the tar."""
    return path.with_suffix(".json")
