"""The shapes world with edits: captioned scenes, edits and reconstructions mixed in one stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import default_collate

from blip3o.data.shapes import ShapesDataModule, make_row
from blip3o.data.stream import Row
from blip3o.pixels import to_tensor
from blip3o.shapes import ALL_KINDS, ShapesEdit, World, edit_record, evaluation_edits, get_world, render, sample_edit
from blip3o.shapes.edit_sampling import check_kinds
from blip3o.shapes.scenes import draw_name

TASKS = ("text", "edit", "reconstruct")
"""What a row may be: a captioned scene, an edit, or an edit that changes nothing."""

_STREAM = 3  # keeps the draw of the task apart from those of scenes and edits with the same seed


def edit_row(index: int, edit: ShapesEdit, world: World) -> Row:
    """An edit as a row.

    Returns:
        `index`; `caption`, the instruction; `image`, the target (3, H, W) in [-1, 1]; `references` (R, 3, H, W), the
        one to edit last; `num_references`, R; and `edit`, the edit itself as JSON, for scoring.
    """
    references = torch.stack([to_tensor(render(scene, world)) for scene in edit.references])
    return {
        "index": index,
        "caption": edit.instruction,
        "image": to_tensor(render(edit.target, world)),
        "references": references,
        "num_references": len(references),
        "edit": json.dumps(edit_record(edit)),
    }


def text_row(row: Row) -> Row:
    """A captioned scene with the keys of `edit_row`: no references, and `edit` empty."""
    return {**row, "references": row["image"].new_zeros((0, *row["image"].shape)), "num_references": 0, "edit": ""}


def make_mixed_row(
    index: int,
    *,
    world: World,
    seed: int,
    tasks: Mapping[str, float],
    edit_kinds: Mapping[str, float] | None = None,
    tag_weights: Mapping[str, float] | None = None,
) -> Row:
    """Row `index` of a stream of tasks, of training captions and training edits."""
    task = draw_name("tasks", tasks, TASKS, np.random.default_rng([seed, index, _STREAM]))
    if task == "text":
        return text_row(make_row(index, world=world, seed=seed, tag_weights=tag_weights))
    weights = {"reconstruct": 1.0} if task == "reconstruct" else edit_kinds
    return edit_row(index, sample_edit(world, seed, index, kind_weights=weights), world)


def collate_edits(rows: Sequence[Row]) -> Row:
    """Rows as a batch.

    `references` is (B, R, 3, H, W) for the largest number R of references in it, each row's own first and zeros behind
    them; it is left out where no row has one.
    """
    most = max(row["num_references"] for row in rows)
    padded = []
    for row in rows:
        given = row["references"]
        rest = {name: value for name, value in row.items() if name != "references"}
        if most:
            rest["references"] = torch.cat([given, given.new_zeros((most - len(given), *given.shape[1:]))])
        padded.append(rest)
    batch: Row = default_collate(padded)
    return batch


class ShapesEditDataModule(ShapesDataModule):
    """Captioned scenes and edits of a shapes world, mixed by weights.

    Every training row is a pure function of (seed, index), its task included. Captions and instructions of validation
    are held out. Captions and edits are split apart from one another: the target of a training edit may well show what
    a held-out caption says.

    Args:
        world: a world, or the name of one in `blip3o.shapes.WORLDS`.
        batch_size: rows a batch on one process.
        seed: stream of rows.
        tasks: relative frequency of `text`, `edit` and `reconstruct`; one that is left out is never drawn.
        edit_kinds: relative frequency of each kind of edit (`blip3o.shapes.ALL_KINDS`) in the task `edit`; the five of
            `EDIT_KINDS` alike, as far as the world holds them, when None.
        num_val: validation scenes of held-out captions; none where `text` has no weight.
        num_val_edits: held-out validation edits, balanced over the kinds that have a weight; none where `edit` has no
            weight.
        num_prompts: held-out captions to draw in prediction.
        tag_weights: relative frequency of each tag of captions in training; uniform when None.
        num_workers: processes that render; 0 renders in the training process.

    Raises:
        ValueError: if a task or kind is unknown, a weight is negative, no task has any, or the world can not hold a
            kind that has one.
    """

    def __init__(
        self,
        *,
        world: str | World = "shapes",
        batch_size: int = 48,
        seed: int = 0,
        tasks: dict[str, float] | None = None,
        edit_kinds: dict[str, float] | None = None,
        num_val: int = 96,
        num_val_edits: int = 100,
        num_prompts: int = 60,
        tag_weights: dict[str, float] | None = None,
        num_workers: int = 0,
    ) -> None:
        self._shapes = get_world(world)
        super().__init__(
            world=self._shapes,
            batch_size=batch_size,
            seed=seed,
            num_val=num_val,
            num_prompts=num_prompts,
            num_workers=num_workers,
        )
        if num_val_edits < 1:
            raise ValueError(f"num_val_edits ({num_val_edits}) must be at least 1.")
        self.tasks = {"text": 1.0, "edit": 1.0} if tasks is None else tasks
        if unknown := sorted(self.tasks.keys() - set(TASKS)):
            raise ValueError(f"tasks names {unknown}; use {TASKS}.")
        draw_name("tasks", self.tasks, TASKS, np.random.default_rng(0))
        self.edit_kinds = edit_kinds
        self.num_val_edits = num_val_edits
        self._val_kinds: list[str] = []
        if self.tasks.get("edit"):
            weights = check_kinds(self._shapes, edit_kinds, "train")
            draw_name("edit_kinds", weights, ALL_KINDS, np.random.default_rng(0))
            self._val_kinds = [kind for kind, weight in weights.items() if weight]
            check_kinds(self._shapes, dict.fromkeys(self._val_kinds, 1.0), "held_out")
        self._make_row = partial(
            make_mixed_row,
            world=self._shapes,
            seed=seed,
            tasks=self.tasks,
            edit_kinds=edit_kinds,
            tag_weights=tag_weights,
        )
        self._collate = collate_edits

    def _held_out_rows(self, seed: int) -> list[Row]:
        rows: list[Row] = []
        if self.tasks.get("text"):
            rows += [
                text_row(make_row(index, world=self._shapes, seed=seed, split="held_out"))
                for index in range(self.num_val)
            ]
        if self._val_kinds:
            edits = evaluation_edits(self._shapes, self.num_val_edits, seed, self._val_kinds)
            rows += [edit_row(len(rows) + number, edit, self._shapes) for number, edit in enumerate(edits)]
        if not rows:  # a run of reconstructions alone
            edits = evaluation_edits(self._shapes, self.num_val_edits, seed, ["reconstruct"])
            rows += [edit_row(number, edit, self._shapes) for number, edit in enumerate(edits)]
        return rows
