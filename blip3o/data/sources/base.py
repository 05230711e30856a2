"""The contract of a source, its rows before and after decoding."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from blip3o.data.pictures import DEFAULT_LIMITS, Limits, Unreadable, read_picture
from blip3o.structures import MAX_REFERENCES

Picture = bytes | Path
"""A picture that is not decoded yet: its file's bytes, or where the file is."""


@dataclass(frozen=True)
class RawRow:
    """A row before its pictures are decoded, cheap to hold by the thousand.

    Attributes:
        key: names the row in messages.
        caption: caption, or the instruction where there are references.
        image: the target picture.
        references: the reference pictures.
        error: why the row can not be used, where that is known already.
    """

    key: str
    caption: str = ""
    image: Picture | None = None
    references: tuple[Picture, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Record:
    """A row that can be trained on.

    Attributes:
        key: names the row in messages.
        caption: caption, or the instruction where there are references.
        image: the target picture, upright, RGB.
        references: up to four reference pictures, upright, RGB.
    """

    key: str
    caption: str
    image: Image.Image
    references: tuple[Image.Image, ...] = ()


class Source(ABC):
    """Captioned pictures or edits, in shards that are read from their beginning.

    Building one touches no file; that happens when it is read, in the process that reads.
    """

    @property
    @abstractmethod
    def label(self) -> str:
        """Names the source in messages."""

    @abstractmethod
    def shards(self) -> list[str]:
        """Names of its shards, in an order that is the same everywhere.

        Raises:
            ValueError: if there is none.
        """

    @abstractmethod
    def read(self, shard: str, start: int) -> Iterator[RawRow]:
        """Rows of a shard from row `start` on; a row that can not be read carries its `error`."""

    def rows(self, shard: str, start: int = 0) -> Iterator[RawRow]:
        """`read`, where a shard that breaks off ends in one row that carries the error."""
        try:
            yield from self.read(shard, start)
        except (OSError, EOFError, tarfile.TarError, UnicodeError) as error:
            yield RawRow(shard, error=f"the rest of the shard can not be read: {error}")


def decode(row: RawRow, limits: Limits = DEFAULT_LIMITS) -> Record:
    """Decodes the pictures of a row.

    Raises:
        Unreadable: if a part of it is missing, empty or can not be decoded.
    """
    if row.error is not None:
        raise Unreadable(row.error)
    if not isinstance(row.caption, str) or not row.caption.strip():
        raise Unreadable(f"the caption ({row.caption!r}) is no text with at least one word")
    if row.image is None:
        raise Unreadable("there is no image")
    if len(row.references) > MAX_REFERENCES:
        raise Unreadable(f"there are {len(row.references)} reference images, more than {MAX_REFERENCES}")
    image = _read("image", row.image, limits)
    references = [_read(f"reference {i}", file, limits) for i, file in enumerate(row.references, start=1)]
    return Record(row.key, row.caption.strip(), image, tuple(references))


def _read(name: str, file: Picture, limits: Limits) -> Image.Image:
    try:
        return read_picture(file, limits)
    except Unreadable as error:
        told = f"{name} {file}" if isinstance(file, Path) else name
        raise Unreadable(f"{told} {error}") from error


def found_files(files: str | list[str], argument: str) -> list[str]:
    """The files of a path, a glob pattern or a list of them, each once; addresses such as `hf://...` are left alone.

    Raises:
        ValueError: naming `argument`, if one of them matches no file.
    """
    found: dict[str, None] = {}
    for pattern in [files] if isinstance(files, str) else files:
        matches = [pattern] if "://" in pattern else _matches(Path(pattern))
        if not matches:
            raise ValueError(f"{argument} ({pattern}) matches no file; name files that exist, or a pattern of them.")
        found |= dict.fromkeys(matches)
    if not found:
        raise ValueError(f"{argument} ({files!r}) names no file; name at least one.")
    return list(found)


def _matches(pattern: Path) -> list[str]:
    """The file of a path, or the files of a glob pattern, sorted."""
    if pattern.is_file():
        return [str(pattern)]
    anchor = Path(pattern.anchor)
    return sorted(str(path) for path in anchor.glob(str(pattern.relative_to(anchor))) if path.is_file())
