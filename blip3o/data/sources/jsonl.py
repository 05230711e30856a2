"""Rows in JSON Lines or JSON files that name their pictures by path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from blip3o.data.pictures import Unreadable
from blip3o.data.sources.base import RawRow, Source, found_files


class InstructionSource(Source):
    """Edits (Nano-150k and X2I2 style): `instruction`, `input_images` (a list of paths), `output_image` (a path).

    Args:
        files: path, glob pattern or list of them: JSON Lines, or (`.json`) one JSON list of rows.
        root: folder that the pictures' paths are relative to; the file's own folder when None.
        instruction: field of the instruction.
        input_images: field of the reference images, one path or a list of them.
        output_image: field of the target.
        inputs_required: whether a row without reference images is a fault; otherwise it is text to image.
    """

    def __init__(
        self,
        *,
        files: str | list[str],
        root: str | None = None,
        instruction: str = "instruction",
        input_images: str = "input_images",
        output_image: str = "output_image",
        inputs_required: bool = True,
    ) -> None:
        self.files = files
        self.root = root
        self.instruction = instruction
        self.input_images = input_images
        self.output_image = output_image
        self.inputs_required = inputs_required

    @property
    def label(self) -> str:
        """The class and the pattern."""
        return f"{type(self).__name__}({self.files})"

    def shards(self) -> list[str]:
        """The files."""
        return found_files(self.files, "files")

    def read(self, shard: str, start: int) -> Iterator[RawRow]:
        """Rows in the order of the file."""
        path = Path(shard)
        root = path.parent if self.root is None else Path(self.root)
        for number, line in islice(enumerate(_lines(path), start=1), start, None):
            key = f"{shard}:{number}"
            try:
                yield self._row(key, json.loads(line) if isinstance(line, bytes) else line, root)
            except Unreadable as error:
                yield RawRow(key, error=str(error))
            except ValueError as error:
                yield RawRow(key, error=f"the line is no JSON: {error}")

    def _row(self, key: str, fields: Any, root: Path) -> RawRow:
        if not isinstance(fields, dict):
            raise Unreadable(f"the row is no JSON object but {type(fields).__name__}")
        required = (self.instruction, self.output_image, *([self.input_images] if self.inputs_required else []))
        for name in required:
            if not fields.get(name):
                raise Unreadable(f"the field {name!r} is missing or empty; there are {sorted(fields)}")
        given = fields.get(self.input_images) or []
        inputs = given if isinstance(given, list) else [given]
        if not all(isinstance(one, str) and one for one in (*inputs, fields[self.output_image])):
            raise Unreadable(f"{self.input_images!r} and {self.output_image!r} must hold paths")
        return RawRow(
            key, fields[self.instruction], root / fields[self.output_image], tuple(root / path for path in inputs)
        )


class ShareGPTSource(InstructionSource):
    """ShareGPT-4o-Image: `input_prompt`, `output_image`, and in edits `input_image`; text to image without it.

    Args:
        files: path, glob pattern or list of them: JSON Lines, or (`.json`) one JSON list of rows.
        root: folder that the pictures' paths are relative to; the file's own folder when None.
    """

    def __init__(self, *, files: str | list[str], root: str | None = None) -> None:
        super().__init__(
            files=files,
            root=root,
            instruction="input_prompt",
            input_images="input_image",
            output_image="output_image",
            inputs_required=False,
        )


def _lines(path: Path) -> Iterator[Any]:
    """Lines of a JSON Lines file as bytes, blank ones left out, or the members of a JSON list, parsed."""
    if path.suffix == ".json":
        rows = _whole(path)
        if isinstance(rows, list):
            yield from rows
            return
    with path.open("rb") as file:
        yield from (line for line in file if line.strip())


def _whole(path: Path) -> Any:
    """What a `.json` file holds as one document; None where it holds several, a line each."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None
