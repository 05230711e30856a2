"""Streams and sets of edits: pure, clear, balanced, and disjoint between training and evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from blip3o.shapes import (
    ALL_KINDS,
    EDIT_KINDS,
    SHAPES,
    SHAPES_MINI,
    ShapesEdit,
    World,
    apply_instruction,
    bounding_box,
    box_gap,
    evaluation_edits,
    get_world,
    sample_edit,
)
from blip3o.shapes.edits import contents_of, is_held_out_edit
from blip3o.shapes.instructions import names_color, source_counts

WORLDS = pytest.mark.parametrize("world", [SHAPES, SHAPES_MINI], ids=["shapes", "mini"])


def held_out(edit: ShapesEdit) -> bool:
    return is_held_out_edit(edit.instruction, [contents_of(scene) for scene in edit.references])


def test_an_edit_is_a_pure_function_of_seed_and_index() -> None:
    assert sample_edit(SHAPES, 3, 7) == sample_edit(SHAPES, 3, 7)
    assert len({repr(sample_edit(SHAPES, seed, index)) for seed in (1, 2) for index in range(5)}) == 10


@WORLDS
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_drawn_edits_are_clear_laid_out_and_of_their_split(world: World, kind: str) -> None:
    for split in ("train", "held_out"):
        for index in range(25):
            edit = sample_edit(world, 0, index, split=split, kind=kind)  # type: ignore[arg-type]
            assert edit.kind == kind and held_out(edit) == (split == "held_out")
            # The instruction is clear in the scene: read anew it asks for the same.
            again = apply_instruction(edit.references, edit.instruction, world, np.random.default_rng(9))
            if not edit.adds:
                assert again == edit
            assert len(edit.source.objects) in source_counts(world, kind)
            assert len(edit.references) == (2 if kind == "combine" else 1)
            for scene in (*edit.references, edit.target):
                boxes = [bounding_box(obj) for obj in scene.objects]
                assert min(map(min, boxes)) >= -1e-6 and max(map(max, boxes)) <= world.canvas + 1e-6
                pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
                assert all(box_gap(a, b) >= world.gap for a, b in pairs)


@WORLDS
def test_training_and_evaluation_share_no_edit(world: World) -> None:
    def key(edit: ShapesEdit) -> tuple[str, ...]:
        scenes = [] if names_color(edit.instruction) else [contents_of(scene) for scene in edit.references]
        return (edit.instruction, *(str((one[0], sorted(one[1:]))) for one in scenes))

    weights = dict.fromkeys(ALL_KINDS, 1.0)
    trained = {key(sample_edit(world, 0, index, kind_weights=weights)) for index in range(700)}
    judged = {key(edit) for edit in evaluation_edits(world, 105, 0, ALL_KINDS)}
    assert len(trained) > 150 and len(judged) > 30
    assert not trained & judged


def test_an_instruction_names_the_colour_where_a_shape_occurs_twice() -> None:
    edits = [
        sample_edit(SHAPES, 1, index, kind=kind) for kind in ("recolor", "remove", "replace") for index in range(60)
    ]
    named = Counter()
    for edit in edits:
        assert edit.edited is not None
        shape = edit.source.objects[edit.edited].shape
        twice = [obj.shape for obj in edit.source.objects].count(shape) > 1
        with_color = f"the {edit.source.objects[edit.edited].color} {shape}" in edit.instruction
        assert with_color or not twice
        named[twice, with_color] += 1
    assert min(named[True, True], named[False, True], named[False, False]) > 20


def test_weights_choose_the_kinds() -> None:
    drawn = Counter(
        sample_edit(SHAPES, 0, index, kind_weights={"add": 3.0, "reconstruct": 1.0, "remove": 0.0}).kind
        for index in range(200)
    )
    assert set(drawn) == {"add", "reconstruct"} and 110 < drawn["add"] < 180
    assert set(Counter(sample_edit(SHAPES, 0, index).kind for index in range(60))) == set(EDIT_KINDS)


def test_a_world_draws_what_it_can_hold() -> None:
    alone = World(tags=("single_object", "colors"))
    assert {sample_edit(alone, 0, index).kind for index in range(40)} == {"recolor", "replace", "background"}
    counting = World(colors=("red", "blue"), shapes=("star",), tags=("counting",))
    kinds = Counter(sample_edit(counting, 0, index, split="all").kind for index in range(40))
    assert set(kinds) == {"recolor", "remove", "add", "background"}


def test_evaluation_edits_are_balanced_pure_and_held_out() -> None:
    edits = evaluation_edits(SHAPES, 22, 4)
    assert edits == evaluation_edits(SHAPES, 22, 4) != evaluation_edits(SHAPES, 22, 5)
    assert Counter(edit.kind for edit in edits) == {kind: 5 if kind in EDIT_KINDS[:2] else 4 for kind in EDIT_KINDS}
    assert all(held_out(edit) for edit in edits)
    assert edits[:7] == evaluation_edits(SHAPES, 7, 4), "fewer are the first of many"
    assert {edit.kind for edit in evaluation_edits(SHAPES, 4, 0, ["combine", "add"])} == {"combine", "add"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"kind": "add", "kind_weights": {"add": 1.0}}, "exclude each other"),
        ({"kind": "move"}, r"kind \('move'\) is no kind of edit"),
        ({"kind_weights": {"move": 0.0}}, r"kind \('move'\) is no kind of edit"),
        ({"kind_weights": {"add": -1.0}}, "must be finite, non-negative and not all zero"),
        ({"kind_weights": {"add": 0.0}}, "must be finite, non-negative and not all zero"),
    ],
)
def test_wrong_choices_are_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sample_edit(SHAPES, 0, 0, **arguments)  # type: ignore[arg-type]


def test_sets_that_can_not_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_edits \(0\)"):
        evaluation_edits(SHAPES, 0, 0)
    with pytest.raises(ValueError, match="one or more different ones"):
        evaluation_edits(SHAPES, 3, 0, ["add", "add"])
    with pytest.raises(ValueError, match=r"kind \('remove'\) can not be held by this world"):
        evaluation_edits(World(tags=("colors",)), 3, 0, ["remove"])
    world = replace(get_world("shapes-mini"), colors=("red", "green"), shapes=("square", "triangle"))
    with pytest.raises(ValueError, match=r"kind \('recolor'\) has no instruction in split 'held_out'"):
        evaluation_edits(world, 3, 0, ["recolor"])
