"""Small pictures, tars and JSON files for the tests of sources."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from blip3o.data.sources import RawRow, Source

BROKEN = b"\x89PNG\r\n\x1a\n no more than the signature"


def color(number: int) -> tuple[int, int, int]:
    """A colour for every number below 4096, at steps that JPEG keeps apart."""
    return (number % 16 * 16, number // 16 % 16 * 16, number // 256 * 16)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(number: int = 0, size: tuple[int, int] = (40, 32), kind: str = "PNG", **options: Any) -> bytes:
    """A picture of one colour, as a file."""
    return encoded(Image.new("RGB", size, color(number)), kind, **options)


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of files by their names."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_rows(path: Path, numbers: Sequence[int], **changed: bytes) -> Path:
    """A tar with `NUMBER.png` and `NUMBER.txt` ("row NUMBER") for each number, and other files where `changed`."""
    files = {}
    for number in numbers:
        files |= {f"{number:04d}.png": plain(number), f"{number:04d}.txt": f"row {number}".encode()}
    return write_tar(path, files | {name.replace("__", "."): data for name, data in changed.items()})


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


class Numbers(Source):
    """Rows that are numbered captions with one picture, in shards of given lengths; those in `bad` can not be used."""

    def __init__(self, lengths: Sequence[int], *, bad: Sequence[int] = (), prefix: str = "", edits: int = 0) -> None:
        self.lengths, self.bad, self.prefix, self.edits = list(lengths), frozenset(bad), prefix, edits
        self.file = plain(7, (32, 32))

    @property
    def label(self) -> str:
        return f"Numbers({self.prefix}{self.lengths})"

    def shards(self) -> list[str]:
        return [str(i) for i in range(len(self.lengths))]

    def read(self, shard: str, start: int) -> Iterator[RawRow]:
        first = sum(self.lengths[: int(shard)])
        for number in range(first + start, first + self.lengths[int(shard)]):
            file = BROKEN if number in self.bad else self.file
            yield RawRow(f"key {number}", f"{self.prefix}{number}", file, (self.file,) * self.edits)
