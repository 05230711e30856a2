"""Webdataset tars: files that share a name up to its first dot are one row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import IO

from blip3o.data.pictures import Unreadable
from blip3o.data.sources.base import RawRow, Source, found_files

IMAGES = ("jpg", "jpeg", "png", "webp")


class TarSource(Source):
    """Captioned pictures in tars: `0001.jpg` with `0001.txt` or `0001.json` (the published pretraining layout).

    Args:
        tars: path, glob pattern or list of them; an address such as `hf://datasets/...` is streamed.
        caption_key: field of the `json` file that holds the caption; the `txt` file is the caption when None.
    """

    def __init__(self, *, tars: str | list[str], caption_key: str | None = None) -> None:
        self.tars = tars
        self.caption_key = caption_key

    @property
    def label(self) -> str:
        """The class and the pattern."""
        return f"{type(self).__name__}({self.tars})"

    def shards(self) -> list[str]:
        """The tars."""
        return found_files(self.tars, "tars")

    def read(self, shard: str, start: int) -> Iterator[RawRow]:
        """Rows in the order of the tar."""
        from datasets import StreamingDownloadManager

        members = StreamingDownloadManager().iter_archive(shard)
        for number, (key, files) in enumerate(groupby(members, key=lambda member: _split(member[0])[0])):
            if number >= start:
                yield self._row(f"{shard}:{key}", files)

    def _row(self, key: str, files: Iterator[tuple[str, IO[bytes]]]) -> RawRow:
        held = {_split(name)[1]: file.read() for name, file in files}  # a stream: each is read when it comes by
        images = [held[extension] for extension in IMAGES if extension in held]
        try:
            if len(images) > 1:
                raise Unreadable(f"there are {len(images)} images, files {sorted(held)}")
            return RawRow(key, self._caption(held), images[0] if images else None)
        except Unreadable as error:
            return RawRow(key, error=str(error))

    def _caption(self, held: dict[str, bytes]) -> str:
        extension = "txt" if self.caption_key is None else "json"
        if extension not in held:
            raise Unreadable(f"there is no {extension} file among {sorted(held)}")
        try:
            text = held[extension].decode()
            return text if self.caption_key is None else json.loads(text)[self.caption_key]
        except (ValueError, KeyError, TypeError) as error:
            wanted = "UTF-8" if self.caption_key is None else f"JSON with the field {self.caption_key!r}"
            raise Unreadable(f"the {extension} file is no {wanted}") from error


def _split(name: str) -> tuple[str, str]:
    """`folder/0001` and `jpg` of `folder/0001.jpg`."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()
