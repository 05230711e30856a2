"""Writing encoded rows into tars, where what an earlier call finished is kept."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from blip3o.data.shards import Split, places_of, read_places, replacing, write_json
from blip3o.data.stream import Row
from blip3o.pixels import to_uint8

_NOTES = ("index", "caption", "key", "num_references")


def pack(row: Row, dtype: torch.dtype) -> dict[str, bytes]:
    """A row's files by their extensions.

    Args:
        row: `index`, `caption`, `image_ids` (N,), `latents` (c, h, w), perhaps `key`, `num_references` and `image`
            (3, H, W) in [-1, 1], which is kept with 8 bits a channel.
        dtype: to store latents in.
    """
    notes = {name: row[name] for name in _NOTES if name in row}
    tensors = {"image_ids": row["image_ids"].to(torch.int32), "latents": row["latents"].to(dtype).contiguous()}
    files = {"json": json.dumps(notes).encode(), "safetensors": save(tensors)}
    if "image" in row:
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(row["image"][None])[0]).save(buffer, "PNG")
        files["png"] = buffer.getvalue()
    return files


def write_shard(path: Path, rows: Sequence[Mapping[str, bytes]], first: int) -> None:
    """Writes a tar of packed rows, which all have files of the same kinds, and then its places.

    Args:
        path: the tar.
        rows: what `pack` gave.
        first: number of the first row in its split.
    """
    with replacing(path) as partial:
        with tarfile.open(partial, "w") as tar:
            for number, files in enumerate(rows, first):
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        with tarfile.open(partial) as tar:
            places = [[member.offset_data, member.size] for member in tar]
        size = partial.stat().st_size
    write_json(places_of(path), {"rows": len(rows), "bytes": size, "files": list(rows[0]), "places": places})


class ShardWriter:
    """Writes the rows of a split into tars of `size` rows, but for those that are whole already.

    Args:
        folder: where.
        split: whose rows.
        size: rows a tar.
        dtype: of stored latents.
    """

    def __init__(self, folder: Path, split: Split, size: int, dtype: torch.dtype) -> None:
        self.folder = folder
        self.split = split
        self.size = size
        self.dtype = dtype
        self._shards: list[str] = []
        self._open: list[dict[str, bytes] | None] = []
        self._count = 0

    def add(self, batch: Row, encode: Callable[[Row], list[Row]]) -> None:
        """Takes a batch; it is encoded, as a whole, only if one of its rows is still to be written."""
        count = len(batch["index"])
        touched = range(self._count // self.size, (self._count + count - 1) // self.size + 1)
        packed: list[dict[str, bytes] | None] = [None] * count
        if any(read_places(self._path(number)) is None for number in touched):
            packed = [pack(row, self.dtype) for row in encode(batch)]
        for row in packed:
            self._open.append(row)
            self._count += 1
            if len(self._open) == self.size:
                self._close()

    def finish(self) -> tuple[list[str], int]:
        """Names of all tars, and the number of rows in them."""
        if self._open:
            self._close()
        return self._shards, self._count

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.tar"

    def _close(self) -> None:
        path = self._path(len(self._shards))
        found = read_places(path)
        if found is None:
            rows = [row for row in self._open if row is not None]
            assert len(rows) == len(self._open), "a batch with a row of a shard that is not whole was encoded"
            write_shard(path, rows, self._count - len(rows))
        elif found["rows"] != len(self._open):
            raise ValueError(
                f"{path} has {found['rows']} rows, but the data now gives {len(self._open)} for it: its files have "
                "changed since the first call; encode into a new folder."
            )
        self._shards.append(path.name)
        self._open = []
