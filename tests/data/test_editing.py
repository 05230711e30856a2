"""Edits among captioned scenes: pure rows, mixed by weights, held out, laid out as mixed training reads them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from blip3o.data.editing import ShapesEditDataModule, collate_edits, make_mixed_row
from blip3o.data.shapes import make_row
from blip3o.data.stream import Row
from blip3o.pixels import to_uint8
from blip3o.shapes import EDIT_KINDS, SHAPES_MINI, get_world, read_edit, render, verify, verify_edits
from blip3o.shapes.captions import is_held_out
from blip3o.shapes.edits import contents_of, is_held_out_edit
from blip3o.training.mixed import by_references

TASKS = {"text": 1.0, "edit": 1.0, "reconstruct": 0.2}


def data(**arguments: Any) -> ShapesEditDataModule:
    values = {"world": "shapes-mini", "batch_size": 6, "num_val": 5, "num_val_edits": 10, "num_prompts": 2}
    return ShapesEditDataModule(**{**values, "tasks": TASKS, **arguments})  # type: ignore[arg-type]


def row(index: int, seed: int = 0, **arguments: Any) -> Row:
    return make_mixed_row(index, world=SHAPES_MINI, seed=seed, **{"tasks": TASKS, **arguments})


def captions_of(module: ShapesEditDataModule) -> list[tuple[str, str]]:
    return [pair for batch in module.val_dataloader() for pair in zip(batch["caption"], batch["edit"], strict=True)]


def task(one: Row) -> str:
    return {"": "text", "keep the image unchanged": "reconstruct"}.get(one["caption"] if one["edit"] else "", "edit")


def test_a_row_is_a_pure_function_of_seed_and_index() -> None:
    for index in range(12):
        one, again = row(index), row(index)
        assert one.keys() == again.keys() and one["caption"] == again["caption"]
        assert torch.equal(one["image"], again["image"]) and torch.equal(one["references"], again["references"])
    assert len({row(index, seed)["image"].numpy().tobytes() for index in range(5) for seed in (1, 2)}) == 10


def test_tasks_and_kinds_are_mixed_by_their_weights() -> None:
    drawn = Counter(task(row(index)) for index in range(220))
    assert 75 < drawn["text"] < 125 and 75 < drawn["edit"] < 125 and 8 < drawn["reconstruct"] < 40
    rows = [row(index, tasks={"edit": 2.0}, edit_kinds={"add": 1.0, "combine": 1.0}) for index in range(30)]
    assert {read_edit(json.loads(one["edit"])).kind for one in rows} == {"add", "combine"}
    assert {one["num_references"] for one in rows} == {1, 2}


def test_rows_hold_what_they_say() -> None:
    for index in range(30):
        one = row(index)
        target = to_uint8(one["image"][None])
        if not one["edit"]:
            assert one["caption"] == make_row(index, world=SHAPES_MINI, seed=0)["caption"]
            assert one["num_references"] == 0 and one["references"].shape == (0, 3, 32, 32)
            assert verify(target, [one["caption"]], SHAPES_MINI)[0].correct
            continue
        edit = read_edit(json.loads(one["edit"]))
        assert one["caption"] == edit.instruction and one["num_references"] == len(edit.references)
        sources = np.stack([render(scene, SHAPES_MINI) for scene in edit.references])
        assert np.array_equal(to_uint8(one["references"]), sources)
        assert verify_edits(target, [edit], SHAPES_MINI)[0].success


def test_batches_are_laid_out_as_mixed_training_reads_them() -> None:
    module = data(edit_kinds={"add": 1.0, "combine": 1.0})
    first, second = islice(iter(module.train_dataloader()), 2)
    assert torch.cat([first["index"], second["index"]]).tolist() == list(range(12))
    rows = [module._make_row(index) for index in range(6)]
    counts = first["num_references"]
    assert counts.tolist() == [one["num_references"] for one in rows] and counts.max() == 2
    assert first["references"].shape == (6, 2, 3, 32, 32)
    for number, given in enumerate(rows):
        count = given["num_references"]
        assert torch.equal(first["references"][number, :count], given["references"])
        assert not first["references"][number, count:].any()
    taken = list(by_references(first))
    assert sorted(torch.cat([numbers for numbers, _ in taken]).tolist()) == list(range(6))
    ((name, given),) = taken[-1][1].items()
    assert name == "references" and given.shape == (int((counts == 2).sum()), 2, 3, 32, 32)


def test_a_batch_without_edits_has_no_references_but_says_so() -> None:
    batch = collate_edits([row(index, tasks={"text": 1.0}) for index in range(3)])
    assert "references" not in batch and batch["num_references"].tolist() == [0, 0, 0] and batch["edit"] == [""] * 3


def test_a_resumed_module_goes_on_with_the_next_batch() -> None:
    module, whole = data(), iter(data().train_dataloader())
    module.load_state_dict({"batches_seen": 2})
    third = list(islice(whole, 3))[2]
    batch = next(iter(module.train_dataloader()))
    assert batch["index"].tolist() == [12, 13, 14, 15, 16, 17]
    assert batch["caption"] == third["caption"] and torch.equal(batch["image"], third["image"])


def test_validation_holds_captions_and_edits_that_were_held_out() -> None:
    rows = captions_of(data())
    assert torch.cat([batch["index"] for batch in data().val_dataloader()]).tolist() == list(range(15))
    texts = [caption for caption, edit in rows if not edit]
    edits = [read_edit(json.loads(edit)) for _, edit in rows if edit]
    assert len(texts) == 5 and len(edits) == 10
    assert Counter(edit.kind for edit in edits) == dict.fromkeys(EDIT_KINDS, 2)
    colored = [caption for caption in texts if any(name in caption.split() for name in SHAPES_MINI.colors)]
    assert colored and all(is_held_out(caption) for caption in colored)
    assert all(is_held_out_edit(e.instruction, [contents_of(scene) for scene in e.references]) for e in edits)
    tested = [edit for batch in data().test_dataloader() for edit in batch["edit"]]
    assert len(tested) == 15 and not set(filter(None, tested)) & {edit for _, edit in rows}


def test_validation_holds_the_tasks_that_are_trained() -> None:
    assert all(edit for _, edit in captions_of(data(tasks={"edit": 1.0})))
    assert not any(edit for _, edit in captions_of(data(tasks={"text": 1.0})))
    assert {caption for caption, _ in captions_of(data(tasks={"reconstruct": 1.0}))} == {"keep the image unchanged"}
    rows = captions_of(data(tasks={"edit": 1}, edit_kinds={"add": 1, "remove": 0}))
    assert {json.loads(edit)["tag"] for _, edit in rows} == {"add"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"tasks": {"txt": 1.0}}, r"tasks names \['txt'\]; use \('text', 'edit', 'reconstruct'\)"),
        ({"tasks": {"text": 0.0}}, "tasks .* must be finite, non-negative and not all zero"),
        ({"edit_kinds": {"move": 1.0}}, r"kind \('move'\) is no kind of edit"),
        ({"edit_kinds": {}}, "edit_kinds .* must be finite, non-negative and not all zero"),
        ({"edit_kinds": {"add": -1.0, "remove": 2.0}}, "edit_kinds .* must be finite, non-negative"),
        ({"num_val_edits": 0}, r"num_val_edits \(0\) must be at least 1"),
        ({"world": "moons"}, "moons"),
        ({"world": "text"}, r"name \(.text.\) is not a world"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        data(**arguments)


def test_a_kind_that_the_world_can_not_hold_is_refused() -> None:
    alone = replace(get_world("shapes-mini"), tags=("single_object", "colors"))
    with pytest.raises(ValueError, match=r"kind \('remove'\) can not be held by this world"):
        data(world=alone, edit_kinds={"remove": 1.0})
    assert data(world=alone, tasks={"edit": 1.0})._val_kinds == ["recolor", "replace", "background"]
