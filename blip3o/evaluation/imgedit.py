"""ImgEdit-Bench, its basic part: 737 edits of nine types, three scores of 1 to 5 each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from blip3o.evaluation.answers import Question
from blip3o.evaluation.edits import (
    EditBenchmark,
    EditItem,
    Rows,
    check_fields,
    check_file_name,
    counts,
    mean,
    mean_of_all,
    told,
)
from blip3o.evaluation.imgedit_prompts import TYPES, imgedit_prompt

FILES = ("basic_edit.json", "singleturn.json")
"""Names under which the benchmark's file is published, the first found is read."""
ALIASES = {"alter": "adjust"}
"""Some copies of the file have another name for a type."""


class ImgEdit(EditBenchmark):
    """Reads `basic_edit.json`, `{key: {id, prompt, edit_type}}`, and the pictures at `id` beside it.

    In the published archive that is the folder `Benchmark/singleturn`. Edited pictures go to `images/KEY.png`, so that
    `images` is the folder that the benchmark's own evaluation takes.

    Args:
        folder: holds the file and the pictures.

    Raises:
        ValueError: if the file is missing or no JSON, or an item lacks a field, its picture or a known type.
    """

    name = "imgedit"
    num_published = 737

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder)
        path = _found_file(root)
        entries = _read(path)
        self.items = [_item(root, path, index, key, entry) for index, (key, entry) in enumerate(entries.items())]

    def all_questions(self) -> list[Question]:
        """One a type."""
        return [_question(kind, "<instruction>") for kind in TYPES]

    def questions(self, item: EditItem) -> list[Question]:
        """One, about both pictures."""
        return [_question(item.group, item.instruction)]

    def item_scores(self, answers: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """`item`: the mean of three scores, the second and the third no higher than the first."""
        first, second, third = answers["edit"]
        return {"item": (first + min(second, first) + min(third, first)) / 3}

    def summary(self, rows: Rows) -> dict[str, Any]:
        """The mean of each type over its items, of all types, and of all items."""
        types = {}
        for kind in TYPES:
            members = [row for row in rows if row["group"] == kind]
            types[kind] = {"mean": mean(_scores(members)), **counts(members)}
        return {
            "types": types,
            "overall": mean_of_all([score["mean"] for score in types.values()]),
            "mean_of_items": mean(_scores(rows)),
        }

    def tables(self, summary: Mapping[str, Any]) -> list[Table]:
        """The types' means, and the two means of all."""
        table = Table(title=f"imgedit, {summary['num_items']} of {self.num_published} items, model {summary['model']}")
        for column in ("type", "score", "judged"):
            table.add_column(column, justify="left" if column == "type" else "right")
        for kind, score in summary["types"].items():
            table.add_row(kind, told(score["mean"]), f"{score['num_judged']}/{score['num_items']}")
        judged = f"{summary['num_judged']}/{summary['num_items']}"
        table.add_row("overall (mean of the types)", told(summary["overall"]), judged, style="bold")
        table.add_row("mean of the items", told(summary["mean_of_items"]), judged)
        return [table]


def _found_file(root: Path) -> Path:
    if not root.is_dir():
        raise ValueError(f"benchmark_dir ({root}) is no folder; name the one that holds {FILES[0]} and the pictures.")
    for name in FILES:
        if (root / name).is_file():
            return root / name
    raise ValueError(f"benchmark_dir ({root}) holds no {FILES[0]}; put the benchmark's file beside its pictures.")


def _read(path: Path) -> dict[str, Any]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.extend(sorted({name for name in names if names.count(name) > 1}))
        return entries

    try:
        entries = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can not be read as JSON: {error}; fetch it again or mend it.") from error
    if repeated:
        raise ValueError(f"{path} repeats the keys {', '.join(repeated)}; leave each in once.")
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} holds no items; it must be a JSON object {{key: {{id, prompt, edit_type}}}}.")
    return entries


def _item(root: Path, path: Path, index: int, key: str, entry: Any) -> EditItem:
    place = f"{path} key {key!r}"
    check_file_name(key, place)
    check_fields(entry, {"id": str, "prompt": str, "edit_type": str}, place)
    kind = ALIASES.get(entry["edit_type"], entry["edit_type"])
    if kind not in TYPES:
        raise ValueError(f"{place} has edit_type ({entry['edit_type']!r}), which must be one of {', '.join(TYPES)}.")
    picture = root / entry["id"]
    if not picture.is_file():
        raise ValueError(f"{place} names the picture {picture}, which is missing; put it there.")
    return EditItem(
        index=index,
        key=key,
        group=kind,
        instruction=entry["prompt"].strip(),
        output=f"images/{key}.png",
        place=place,
        source=partial(Path, picture),
    )


def _question(kind: str, instruction: str) -> Question:
    return Question(
        name="edit", prompt=imgedit_prompt(kind, instruction), shows=("before", "after"), num_scores=3, low=1, high=5
    )


def _scores(rows: Rows) -> list[float]:
    return [row["scores"]["item"] for row in rows if row["scores"] is not None]
