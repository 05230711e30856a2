"""What benchmarks of editing have in common: their items, what a judge is asked, how scores become a summary."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from rich.table import Table

from blip3o.data.pictures import read_picture
from blip3o.evaluation.answers import Question

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class EditItem:
    """One edit of a benchmark.

    Attributes:
        index: its place in the benchmark, which decides its seed.
        key: the benchmark's own name of it.
        group: type of the edit.
        instruction: the words.
        output: path of the edited picture below the output folder; no two items share one.
        place: where it stands, for messages.
        source: gives the picture's file or its bytes.
        fields: what else is recorded of it.
    """

    index: int
    key: str
    group: str
    instruction: str
    output: str
    place: str
    source: Callable[[], bytes | Path]
    fields: Mapping[str, Any] = field(default_factory=dict)

    def picture(self) -> Image.Image:
        """The picture to edit.

        Raises:
            ValueError: if it can not be read.
        """
        source = self.source()
        try:
            return read_picture(source)
        except ValueError as error:
            told = f"the picture {source}" if isinstance(source, Path) else "the picture"
            raise ValueError(f"{self.place}: {told} {error}; mend the benchmark's folder.") from error


class EditBenchmark(ABC):
    """A benchmark of instructions for pictures, scored by a judge.

    Attributes:
        name: of the benchmark.
        num_published: items of the published benchmark, to tell a part from the whole.
        items: all of them, in the order of the file.
    """

    name: ClassVar[str]
    num_published: ClassVar[int]
    items: list[EditItem]

    def prompts_digest(self) -> str:
        """A hash of the words that a judge is given, which change with this package."""
        told = [(question.name, question.prompt) for question in self.all_questions()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def shown(self, image: Image.Image) -> Image.Image:
        """A picture as the judge sees it."""
        return image

    @abstractmethod
    def all_questions(self) -> list[Question]:
        """Every question, about an instruction that is `<instruction>`."""

    @abstractmethod
    def questions(self, item: EditItem) -> list[Question]:
        """What the judge is asked about an edit."""

    @abstractmethod
    def item_scores(self, answers: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The scores of an edit from those of each question."""

    @abstractmethod
    def summary(self, rows: Rows) -> dict[str, Any]:
        """Means over groups.

        Args:
            rows: one an item, with `group`, the item's `fields` and `scores` as `item_scores` gave them, or None where
                the judge failed.
        """

    @abstractmethod
    def tables(self, summary: Mapping[str, Any]) -> list[Table]:
        """What is printed of a summary."""


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where one of the values is missing, since the rest would stand for another benchmark."""
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def counts(rows: Rows) -> dict[str, int]:
    """How many items there are, and how many of them have scores."""
    judged = sum(row["scores"] is not None for row in rows)
    return {"num_items": len(rows), "num_judged": judged, "num_failures": len(rows) - judged}


def told(value: float | None) -> str:
    """A score in a table."""
    return "-" if value is None else f"{value:.3f}"


def check_fields(row: Any, wanted: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    """Raises unless a row is an object that has the wanted fields, of the wanted types, no text empty.

    Raises:
        ValueError: naming the place, the field and the remedy.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{place} is no JSON object but {type(row).__name__}; write one with {', '.join(wanted)}.")
    for name, kind in wanted.items():
        if name not in row:
            raise ValueError(f"{place} has no field {name!r} (it has {', '.join(map(str, row)) or 'none'}); add it.")
        value = row[name]
        if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
            kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{place} has {name} ({value!r}), which must be {kinds} and not empty; mend it.")


def check_file_name(key: str, place: str) -> None:
    """Raises a ValueError unless a key can name a file."""
    if key in (".", "..") or any(sign in key for sign in "/\\\0"):
        raise ValueError(f"{place}: key ({key!r}) must be able to name a file; leave out slashes.")
