"""Anything that the `datasets` library can stream: hub datasets, parquet, and its own readers of tars and JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip3o.data.pictures import Unreadable
from blip3o.data.sources.base import Picture, RawRow, Source

_ROWS_AT_A_TIME = 16


class DatasetSource(Source):
    """Rows of `datasets.load_dataset(..., streaming=True)`, their pictures decoded here rather than there.

    What that library refuses to parse (such as a damaged line of JSON) ends the shard; `TarSource` and
    `InstructionSource` pass over the row alone.

    Args:
        path: hub id, folder, or the library's reader (`webdataset`, `json`, `parquet`, ...).
        caption: column of the caption or instruction; `json.caption` is the field `caption` of the column `json`.
        image: column of the target picture: bytes, an image, or a path.
        references: column of the reference pictures, one or a list of them.
        name: configuration of the dataset.
        data_files: path, pattern or list of them, where `path` is a reader.
        split: which split.
        root: folder that paths are relative to.
    """

    def __init__(
        self,
        *,
        path: str,
        caption: str,
        image: str,
        references: str | None = None,
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        root: str = ".",
    ) -> None:
        self.path = path
        self.caption = caption
        self.image = image
        self.references = references
        self.name = name
        self.data_files = data_files
        self.split = split
        self.root = Path(root)
        self._loaded: tuple[int, Any] | None = None

    @property
    def label(self) -> str:
        """The class and what it loads."""
        return f"{type(self).__name__}({self.path}{'' if self.data_files is None else f', {self.data_files}'})"

    def shards(self) -> list[str]:
        """Numbers of the dataset's shards."""
        return [str(number) for number in range(self._dataset().num_shards)]

    def read(self, shard: str, start: int) -> Iterator[RawRow]:
        """Rows in the order of the shard."""
        whole = self._dataset()
        part = whole.shard(num_shards=whole.num_shards, index=int(shard)).skip(start)
        number = start
        # Unlike iterating row by row, `iter` leaves the division among a loader's workers to us.
        batches = part.iter(batch_size=_ROWS_AT_A_TIME)
        while (batch := self._next(batches)) is not None:
            for values in zip(*batch.values(), strict=True):
                fields = dict(zip(batch.keys(), values, strict=True))
                yield self._row(f"{self.path}:{shard}:{fields.get('__key__', number)}", fields)
                number += 1

    def _next(self, batches: Iterator[dict[str, list[Any]]]) -> dict[str, list[Any]] | None:
        """The next rows by column, None at the end."""
        from datasets.exceptions import DatasetsError

        try:
            return next(batches, None)
        except (ValueError, DatasetsError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _row(self, key: str, fields: dict[str, Any]) -> RawRow:
        try:
            references = None if self.references is None else _field(fields, self.references)
            several = references if isinstance(references, list) else [references]
            image = self._picture(_field(fields, self.image))
            given = [self._picture(one) for one in several if one is not None]
            return RawRow(key, _field(fields, self.caption), image, tuple(one for one in given if one is not None))
        except Unreadable as error:
            return RawRow(key, error=str(error))

    def _picture(self, value: Any) -> Picture | None:
        """The bytes or the path of what a column holds."""
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return self.root / value
        raise Unreadable(f"an image column holds {type(value).__name__}, neither bytes nor a path")

    def _dataset(self) -> Any:
        """The stream, opened once a process: open files do not survive a fork."""
        if self._loaded is None or self._loaded[0] != os.getpid():
            from datasets import load_dataset
            from datasets.exceptions import DatasetsError

            try:
                stream = load_dataset(
                    self.path, self.name, data_files=self.data_files, split=self.split, streaming=True
                )
            except (OSError, ValueError, DatasetsError) as error:
                raise ValueError(f"path ({self.label}) can not be loaded: {error}") from error
            self._loaded = os.getpid(), stream.decode(False)
        return self._loaded[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the stream."""
        return self.__dict__ | {"_loaded": None}


def _field(fields: dict[str, Any], name: str) -> Any:
    """The value of a column, or of a field in one."""
    value: Any = fields
    for part in [name] if name in fields else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise Unreadable(f"there is no column {name!r} among {sorted(fields)}")
        value = value[part]
    return value
