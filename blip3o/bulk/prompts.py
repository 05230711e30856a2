"""Prompts of a file, and the pictures that they ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from blip3o.images import numbered

SEEDS = range(-(2**63), 2**63)
"""What a torch generator can be seeded with."""

RESERVED = ("file", "prompt", "seed", "settings")
"""Names of `images.jsonl` that a prompt's own fields can not have."""

_MOST_BYTES = 200  # of a file's or folder's name; file systems take 255, and a file is written under a longer one
_SHOWN = 5


@dataclass(frozen=True)
class Prompt:
    """What one prompt asks for.

    Attributes:
        prompt: what to draw.
        seed: of its first picture; by its place among all prompts when None.
        name: of its picture below the output folder, with or without `.png`; its number when None.
        fields: what else is told of it in `images.jsonl`, as JSON can hold it.
        place: where it stands, for messages.
    """

    prompt: str
    seed: int | None = None
    name: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture to make.

    Attributes:
        prompt: what to draw.
        seed: of its generator.
        file: where it goes, below the output folder.
        fields: what else is told of it.
    """

    prompt: str
    seed: int
    file: str
    fields: Mapping[str, Any]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads `.txt`, one prompt a line, or `.jsonl`, one object a line.

    An object has `prompt`, and may have `seed`, `name` (of the picture, without `.png` where one likes) or `filename`
    (with it), and further fields, which are carried over.

    Raises:
        ValueError: if the file can not be read, or naming the lines that hold no prompt.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"prompts ({path}) must end in .txt or .jsonl.")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"prompts ({path}) can not be read: {error.strerror}.") from error
    if not lines:
        raise ValueError(f"prompts ({path}) holds no line; write a prompt a line.")
    found, faults = [], []
    for number, line in enumerate(lines, start=1):
        place = f"line {number}"
        try:
            text = line.decode("utf-8-sig")
            found.append(_of_object(text, place) if path.suffix == ".jsonl" else Prompt(_checked(text), place=place))
        except UnicodeDecodeError:
            faults.append(f"{place} is no UTF-8")
        except ValueError as error:
            faults.append(f"{place} {error}")
    refuse(faults, f"prompts ({path})")
    return found


def pictures_of(prompts: Sequence[Prompt], *, num_images: int, seed: int) -> tuple[list[Picture], list[str]]:
    """The pictures of all prompts in their order, and what is wrong with the prompts.

    Picture j of prompt i is drawn with `seed + i * num_images + j`, or with the prompt's own seed + j.
    """
    pictures: list[Picture] = []
    faults: list[str] = []
    first: dict[str, str] = {}
    for index, one in enumerate(prompts):
        start = seed + index * num_images if one.seed is None else one.seed
        try:
            paths = numbered(_path(one.name) if one.name is not None else Path(f"{index:05d}.png"), num_images)
            _checked(one.prompt)
            if start not in SEEDS or start + num_images - 1 not in SEEDS:
                raise ValueError(f"has the seed {start}, which must lie in -2**63..2**63 - 1")
            if reserved := [name for name in RESERVED if name in one.fields]:
                raise ValueError(f"has the field {reserved[0]!r}, which images.jsonl has for itself")
        except ValueError as error:
            faults.append(f"{one.place} {error}")
            continue
        for number, path in enumerate(paths):
            name = path.as_posix()
            # Some file systems take no account of the case.
            if (other := first.setdefault(name.casefold(), one.place)) != one.place:
                faults.append(f"{one.place} has the file {name} of {other}")
            pictures.append(Picture(one.prompt, start + number, name, one.fields))
    for picture in pictures:
        for folder in PurePosixPath(picture.file.casefold()).parents:
            if str(folder) in first:
                own = first[picture.file.casefold()]
                faults.append(f"{own} has a file in {folder}, which is the file of {first[str(folder)]}")
    return pictures, faults


def refuse(faults: Iterable[str], what: str) -> None:
    """Raises a ValueError that tells of the first faults, if there are any."""
    if all_of_them := list(dict.fromkeys(faults)):
        more = f"; and {len(all_of_them) - _SHOWN} more" if len(all_of_them) > _SHOWN else ""
        raise ValueError(f"{what}: {'; '.join(all_of_them[:_SHOWN])}{more}.")


def batches(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """The pictures in batches that their order alone decides, so that a resumed run has those of one that was not."""
    for first in range(0, len(pictures), size):
        yield pictures[first : first + size]


def _of_object(text: str, place: str) -> Prompt:
    """A line of a JSONL file."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError("is empty" if not text.strip() else f"is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError('is no JSON object such as {"prompt": "a red circle"}')
    if "prompt" not in values:
        raise ValueError("has no field 'prompt'")
    prompt, seed = _checked(values.pop("prompt")), values.pop("seed", None)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"has the seed {seed!r}, which must be a whole number")
    names = {key: values.pop(key) for key in ("name", "filename") if key in values}
    if len(names) == 2:
        raise ValueError("has both name and filename; give one")
    for key, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"has the {key} {name!r}, which must be a string")
        if key == "filename" and not name.endswith(".png"):
            raise ValueError(f"has the filename {name!r}, which must end in .png")
    return Prompt(prompt, seed, next(iter(names.values()), None), values, place)


def _checked(prompt: object) -> str:
    """A prompt, which must be a string with at least one word."""
    if not isinstance(prompt, str):
        raise ValueError(f"has the prompt {prompt!r}, which must be a string")
    if not prompt.strip():
        raise ValueError("is empty, or its prompt is")
    return prompt


def _path(name: str) -> Path:
    """Where the picture of a name goes, below the output folder."""
    path = PurePosixPath(name if name.endswith(".png") else f"{name}.png")
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"has the name {name!r}, which leaves the folder")
    if not path.name.removesuffix(".png").strip(". ") or name.endswith("/") or not name.isprintable():
        raise ValueError(f"has the name {name!r}, which is none of a file")
    if any(len(part.encode()) > _MOST_BYTES for part in path.parts):
        raise ValueError(f"has the name {name[:20]!r}..., which is too long; a part may have {_MOST_BYTES} bytes")
    return Path(path)
