"""GEdit-Bench: eleven groups of edits in English and in Chinese, semantic consistency and perceptual quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
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
from blip3o.evaluation.gedit_prompts import quality_prompt, semantics_prompt
from blip3o.evaluation.gedit_rows import PICTURES, GEditRow, gedit_rows

GROUPS = (
    *("background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change"),
    *("subject-add", "subject-remove", "subject-replace", "text_change", "tone_transfer"),
)
LANGUAGES = ("en", "cn")
SCORES = ("SC", "PQ", "O")
SHOWN_AREA = 512 * 512
"""Pixels of a picture as the judge sees it; its proportions are kept."""
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **{"task_type": str, "key": str, "instruction": str, "instruction_language": str},
    "Intersection_exist": bool,
}


class GEdit(EditBenchmark):
    """Reads parquet files as published, or `metadata.jsonl` with the same fields and paths for pictures.

    Edited pictures go to `fullset/GROUP/LANGUAGE/KEY.png`, as the benchmark's own evaluation wants them.

    Args:
        folder: holds the files.
        language: `en`, `cn` or `all`: whose items are kept.

    Raises:
        ValueError: if the language is unknown, the files are missing or damaged, or a row lacks a field, its picture or
            a known group or language.
    """

    name = "gedit"
    num_published = 1212

    def __init__(self, folder: str | Path, language: str = "all") -> None:
        if language not in (*LANGUAGES, "all"):
            raise ValueError(f"language ({language!r}) must be en, cn or all.")
        self.languages = LANGUAGES if language == "all" else (language,)
        every = [_item(index, row) for index, row in enumerate(gedit_rows(folder))]
        seen: dict[str, str] = {}
        for item in every:
            if item.output in seen:
                raise ValueError(f"{item.place} has the key, group and language of {seen[item.output]}; drop one.")
            seen[item.output] = item.place
        self.items = [item for item in every if item.fields["language"] in self.languages]
        if not self.items:
            raise ValueError(f"benchmark_dir ({folder}) holds no row of language {language}; fetch it again.")

    def shown(self, image: Image.Image) -> Image.Image:
        """A picture of about `SHOWN_AREA` pixels."""
        ratio = image.width / image.height
        width = math.sqrt(SHOWN_AREA * ratio)
        size = (max(1, int(width)), max(1, int(width / ratio)))
        return image.resize(size, Image.Resampling.BICUBIC)

    def all_questions(self) -> list[Question]:
        """The two questions."""
        return _questions("<instruction>")

    def questions(self, item: EditItem) -> list[Question]:
        """SC about both pictures, PQ about the edited one."""
        return _questions(item.instruction)

    def item_scores(self, answers: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """SC and PQ, each the lesser of its two scores, and O, the root of their product."""
        semantics, quality = min(answers["SC"]), min(answers["PQ"])
        return {"SC": semantics, "PQ": quality, "O": math.sqrt(semantics * quality)}

    def summary(self, rows: Rows) -> dict[str, Any]:
        """For each language, all its items and apart from them those of the intersection subset."""
        languages = {}
        for language in self.languages:
            members = [row for row in rows if row["language"] == language]
            subset = [row for row in members if row["intersection"]]
            languages[language] = {"full": _means(members), "intersection": _means(subset)}
        return {"languages": languages}

    def tables(self, summary: Mapping[str, Any]) -> list[Table]:
        """A table a language."""
        tables = []
        for language, parts in summary["languages"].items():
            full, subset = parts["full"], parts["intersection"]
            total = self.num_published // len(LANGUAGES)
            table = Table(title=f"gedit {language}, {full['num_items']} of {total} items, model {summary['model']}")
            for column in ("group", *SCORES, "judged", *(f"{name} (intersection)" for name in SCORES)):
                table.add_column(column, justify="left" if column == "group" else "right")
            for group in GROUPS:
                table.add_row(group, *_cells(full["groups"][group]), *_cells(subset["groups"][group])[:-1])
            table.add_row("mean of the groups", *_cells(full), *_cells(subset)[:-1], style="bold")
            tables.append(table)
        return tables


def _item(index: int, row: GEditRow) -> EditItem:
    check_fields(row.fields, _FIELDS, row.place)
    fields = row.fields
    if row.picture is None:
        raise ValueError(f"{row.place} has no field {PICTURES[1]!r}; add it.")
    if fields["task_type"] not in GROUPS:
        raise ValueError(
            f"{row.place} has task_type ({fields['task_type']!r}), which must be one of {', '.join(GROUPS)}."
        )
    if fields["instruction_language"] not in LANGUAGES:
        given = fields["instruction_language"]
        raise ValueError(f"{row.place} has instruction_language ({given!r}), which must be en or cn.")
    check_file_name(fields["key"], row.place)
    return EditItem(
        index=index,
        key=fields["key"],
        group=fields["task_type"],
        instruction=fields["instruction"].strip(),
        output=f"fullset/{fields['task_type']}/{fields['instruction_language']}/{fields['key']}.png",
        place=row.place,
        source=row.picture,
        fields={"language": fields["instruction_language"], "intersection": fields["Intersection_exist"]},
    )


def _questions(instruction: str) -> list[Question]:
    return [
        Question("SC", semantics_prompt(instruction), shows=("before", "after"), num_scores=2, low=0, high=10),
        Question("PQ", quality_prompt(), shows=("after",), num_scores=2, low=0, high=10),
    ]


def _means(rows: Rows) -> dict[str, Any]:
    """The three means of each group over its items, and of the groups."""
    groups: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        members = [row for row in rows if row["group"] == group]
        scores = [row["scores"] for row in members if row["scores"] is not None]
        groups[group] = {**{name: mean([one[name] for one in scores]) for name in SCORES}, **counts(members)}
    overall = {name: mean_of_all([group[name] for group in groups.values()]) for name in SCORES}
    return {**overall, **counts(rows), "groups": groups}


def _cells(means: Mapping[str, Any]) -> list[str]:
    return [*(told(means[name]) for name in SCORES), f"{means['num_judged']}/{means['num_items']}"]
