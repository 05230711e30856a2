"""Rows of GEdit-Bench: from parquet files as published, or from a JSON Lines file that names pictures by path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

JSON_LINES = "metadata.jsonl"
PICTURES = ("input_image_raw", "input_image")
"""Fields of the picture; the first that a row has is taken, which is the one that the benchmark's own scores see."""


class GEditRow(NamedTuple):
    """A row as it stands in a file.

    Attributes:
        place: file and line or row, for messages.
        fields: everything but the pictures; whatever JSON held where it was no object.
        picture: gives the picture's file or its bytes; None where the row names none.
    """

    place: str
    fields: Any
    picture: Callable[[], bytes | Path] | None


def gedit_rows(folder: str | Path) -> Iterator[GEditRow]:
    """The rows of a folder: of its parquet files in the order of their names, or of its `metadata.jsonl`.

    Raises:
        ValueError: if it holds neither or both, or a file can not be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"benchmark_dir ({root}) is no folder; name the one that holds the benchmark's files.")
    tables = sorted(root.rglob("*.parquet"))
    lines = root / JSON_LINES
    if tables and lines.is_file():
        raise ValueError(f"benchmark_dir ({root}) holds parquet files and {JSON_LINES}; leave one of them there.")
    if tables:
        for path in tables:
            yield from _parquet_rows(path)
    elif lines.is_file():
        yield from _json_rows(lines)
    else:
        raise ValueError(
            f"benchmark_dir ({root}) holds no parquet file and no {JSON_LINES}; fetch stepfun-ai/GEdit-Bench into it."
        )


def _json_rows(path: Path) -> Iterator[GEditRow]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at the other separators that JSON may hold
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} can not be read as text: {error}; fetch it again.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is no JSON: {error}; mend it.") from error
        names = [fields[name] for name in PICTURES if name in fields] if isinstance(fields, dict) else []
        if not names:
            yield GEditRow(place, fields, None)
            continue
        if not isinstance(names[0], str) or not names[0]:
            raise ValueError(f"{place} has the picture {names[0]!r}, which must be a path; mend it.")
        picture = path.parent / names[0]
        if not picture.is_file():
            raise ValueError(f"{place} names the picture {picture}, which is missing; put it there.")
        yield GEditRow(place, fields, partial(Path, picture))


def _parquet_rows(path: Path) -> Iterator[GEditRow]:
    """Rows without their pictures, which are read when they are asked for: those of the benchmark take gigabytes."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        column = next((name for name in PICTURES if name in names), None)
        plain = [name for name in names if name not in PICTURES]
        row = 0
        for group in range(file.num_row_groups):
            for place_in_group, fields in enumerate(file.read_row_group(group, columns=plain).to_pylist()):
                picture = None if column is None else partial(_parquet_picture, path, group, place_in_group, column)
                yield GEditRow(f"{path} row {row}", fields, picture)
                row += 1
    except (OSError, ValueError) as error:  # the second is pyarrow's word for a damaged file
        raise ValueError(f"{path} can not be read as parquet: {error}; fetch it again.") from error


def _parquet_picture(path: Path, group: int, row: int, column: str) -> bytes:
    value = _column(path, group, column)[row].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"{path} row group {group} row {row} holds no bytes in {column!r}; fetch the file again.")
    return data


@lru_cache(maxsize=2)
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(0)
