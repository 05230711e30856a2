"""Instructions: what a world's grammar holds, that it reads what it lists, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blip3o.shapes import ALL_KINDS, EDIT_KINDS, SHAPES, SHAPES_MINI, World, edit_kinds, instructions, parse_instruction
from blip3o.shapes.captions import ObjectSpec, is_held_out
from blip3o.shapes.instructions import EditSpec, names_color

ALONE = World(tags=("single_object", "colors"))


@pytest.mark.parametrize(
    ("kind", "count", "example"),
    [
        ("recolor", 30 + 150, "make the circle green"),
        ("remove", 5 + 30, "remove the red star"),
        ("add", 30, "add an orange triangle"),
        ("replace", 20 + 120, "replace the square with a star"),
        ("background", 2, "make the background black"),
        ("reconstruct", 1, "keep the image unchanged"),
        ("combine", 1, "put the shape of the first image into the second"),
    ],
)
def test_the_grammar_holds_the_forms_of_each_kind(kind: str, count: int, example: str) -> None:
    table = instructions(SHAPES, kind)
    assert len(table) == len(set(table)) == count
    assert example in table


@pytest.mark.parametrize("world", [SHAPES, SHAPES_MINI], ids=["shapes", "mini"])
def test_what_is_listed_is_read_as_its_kind_and_splits_in_two(world: World) -> None:
    assert edit_kinds(world) == edit_kinds(world, "held_out") == EDIT_KINDS
    for kind in ALL_KINDS:
        every = instructions(world, kind)
        assert {parse_instruction(one, world).kind for one in every} == {kind}
        train, held_out = (set(instructions(world, kind, split)) for split in ("train", "held_out"))
        assert train | held_out == set(every)
        assert all(not names_color(one) for one in train & held_out)
        assert all(is_held_out(one) for one in held_out if names_color(one))


def test_what_an_instruction_says() -> None:
    expected = [
        EditSpec("make the circle green", "recolor", ObjectSpec("circle"), "green"),
        EditSpec("make the red circle green", "recolor", ObjectSpec("circle", "red"), "green"),
        EditSpec("remove the star", "remove", ObjectSpec("star")),
        EditSpec("add an orange cross", "add", ObjectSpec("cross", "orange")),
        EditSpec("replace the blue square with a star", "replace", ObjectSpec("square", "blue"), "star"),
        EditSpec("make the background white", "background", None, "white"),
        EditSpec("keep the image unchanged", "reconstruct"),
    ]
    assert [parse_instruction(one.instruction, SHAPES) for one in expected] == expected


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("paint the circle green", "it has none of the forms of an edit"),
        ("make the red circle red", "something has to change"),
        ("replace the star with a star", "something has to change"),
        ("make the circle pink", "colours are"),
        ("add a orange circle", "colours are"),
        ("remove the hexagon", "shapes"),
        ("make the background green", "backgrounds"),
        ("remove the red star ", "it has none of the forms"),
    ],
)
def test_what_the_grammar_lacks_is_refused(instruction: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_instruction(instruction, SHAPES)
    assert told in str(error.value) and repr(instruction) in str(error.value)


@pytest.mark.parametrize(
    ("world", "kind", "told"),
    [
        (replace(SHAPES, colors=("red",), tags=("single_object", "two_object")), "recolor", "there is one, red"),
        (replace(SHAPES, shapes=("star",), tags=("colors", "counting")), "replace", "there is one, star"),
        (ALONE, "remove", "one object is to be left"),
        (ALONE, "add", "one object is to be added"),
        (ALONE, "combine", "one object is to be added"),
        (World(colors=("red",), shapes=("star",), tags=("colors", "counting")), "remove", "all its objects are alike"),
    ],
)
def test_a_kind_that_a_world_can_not_hold_is_left_out_and_refused(world: World, kind: str, told: str) -> None:
    assert kind not in edit_kinds(world)
    with pytest.raises(ValueError, match=rf"kind \('{kind}'\) can not be held by this world: .*{told}"):
        instructions(world, kind)


def test_unknown_kinds_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kind \('move'\) is no kind of edit"):
        instructions(SHAPES, "move")
    with pytest.raises(ValueError, match=r"split \('test'\) is unknown"):
        instructions(SHAPES, "add", "test")  # type: ignore[arg-type]
