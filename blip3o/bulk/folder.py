"""The folder of a bulk generation: what made it, what is there already, and what is still missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from blip3o.ablation.files import locked, write_json, write_text
from blip3o.bulk.prompts import Picture
from blip3o.images import read_settings, save_pngs

RECORD = "generation.json"
MANIFEST = "images.jsonl"


class BulkFolder:
    """Pictures, each whole or not there; `generation.json`, what made them; `images.jsonl`, a line a picture.

    Args:
        root: the folder.
        pictures: all that it shall hold in the end, with files of their own.
        record: plain values that decide the pictures together with the prompts.

    Attributes:
        done: files of `pictures` that are there.
    """

    def __init__(self, root: Path, pictures: Sequence[Picture], record: dict[str, Any]) -> None:
        self.root = root
        self.pictures = pictures
        told = json.dumps([[one.prompt, one.seed, one.file, dict(one.fields)] for one in pictures], sort_keys=True)
        prompts = {"num_pictures": len(pictures), "sha256": hashlib.sha256(told.encode()).hexdigest()}
        self.record: dict[str, Any] = json.loads(json.dumps({**record, "prompts": prompts}))
        self.done: set[str] = set()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Looks at what is there; inside, no other process writes to the folder. `images.jsonl` is whole at the end.

        Raises:
            ValueError: if the folder is no folder, is written to by another process, or holds what was made otherwise.
        """
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"output_dir ({self.root}) is a file; name a folder.")
        self._check_inside()
        self._check_record()
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.root / ".lock", wait=False))
            except BlockingIOError as error:
                raise ValueError(f"output_dir ({self.root}) is written to by another process; wait for it.") from error
            self._clear()
            self.done = set(self._found())
            try:
                yield
            finally:
                self._write_manifest()

    def missing(self, some: Sequence[Picture]) -> list[int]:
        """Places in `some` of the pictures that are not there."""
        return [place for place, one in enumerate(some) if one.file not in self.done]

    def save(self, made: Sequence[tuple[Picture, Image.Image]]) -> None:
        """Writes pictures, each whole or not at all, and their lines."""
        if not (self.root / RECORD).exists():
            write_json(self.root / RECORD, self.record)
        for one, _ in made:
            (self.root / one.file).parent.mkdir(parents=True, exist_ok=True)
        save_pngs([(image, self.root / one.file, self._settings(one)) for one, image in made])
        with (self.root / MANIFEST).open("a", encoding="utf-8") as file:
            file.writelines(self._line(one) for one, _ in made)
        self.done |= {one.file for one, _ in made}

    def _settings(self, one: Picture) -> dict[str, Any]:
        """What a picture is drawn again by, as `blip3o generate` writes it."""
        return {"prompt": one.prompt, "model": self.record["model"], "seed": one.seed, **self.record["settings"]}

    def _line(self, one: Picture) -> str:
        """A picture's line in `images.jsonl`."""
        settings = {"model": self.record["model"], **self.record["settings"]}
        told = {**one.fields, "file": one.file, "prompt": one.prompt, "seed": one.seed, "settings": settings}
        return json.dumps(told) + "\n"

    def _write_manifest(self) -> None:
        """Lines of the pictures that are there, in the order of the prompts, whatever that of their making."""
        if self.done:
            lines = (self._line(one) for one in self.pictures if one.file in self.done)
            write_text(self.root / MANIFEST, "".join(lines))

    def _check_inside(self) -> None:
        """Raises a ValueError where a link in the folder leads out of it."""
        inside = self.root.resolve()
        for parent in sorted({(self.root / one.file).parent for one in self.pictures}):
            if not parent.resolve().is_relative_to(inside):
                raise ValueError(f"output_dir ({self.root}) holds a link, {parent}, that leaves it; remove the link.")

    def _check_record(self) -> None:
        """Raises a ValueError unless an earlier run, if any, was one of the same settings and prompts."""
        path = self.root / RECORD
        if not path.exists():
            return
        try:
            earlier = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} can not be read: {error}; name another folder.") from error
        had, now = (_flat(record) for record in (earlier, self.record))
        if others := [name for name in {**had, **now} if had.get(name) != now.get(name)]:
            raise ValueError(
                f"output_dir ({self.root}) holds pictures of {_told(had, others)}, not of {_told(now, others)}; name "
                "another folder, or go on as it was begun."
            )

    def _found(self) -> Iterator[str]:
        """Files that are there.

        Raises:
            ValueError: if one of them was made otherwise.
        """
        for one in self.pictures:
            path = self.root / one.file
            if not path.exists():
                continue
            try:
                same = read_settings(path) == self._settings(one)
            except (OSError, ValueError):
                same = False
            if not same:
                raise ValueError(f"{path} was not made by this run; name another folder, or move the file away.")
            yield one.file

    def _clear(self) -> None:
        """Removes what a killed process left half written."""
        files = {one.file for one in self.pictures}
        for parent in {(self.root / one).parent for one in files}:
            for partial in parent.glob(".*.part"):
                name = partial.name[1:].rsplit(".", 2)[0]
                if (parent / name).relative_to(self.root).as_posix() in files or name in (RECORD, MANIFEST):
                    partial.unlink()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Settings and prompts beside what else is recorded."""
    flat = {name: value for name, value in record.items() if name not in ("settings", "prompts")}
    prompts = {f"prompts ({name})": value for name, value in record.get("prompts", {}).items()}
    return flat | record.get("settings", {}) | prompts


def _told(flat: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {json.dumps(flat.get(name))}" for name in names)
