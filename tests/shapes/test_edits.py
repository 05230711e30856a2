"""What an instruction makes of a scene, and the scenes in which it is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from blip3o.shapes import SHAPES, Scene, ShapeObject, apply_instruction, bounding_box, box_gap, edit_record, read_edit
from blip3o.shapes.edits import ShapesEdit, contents_of, edit_scene, is_held_out_edit

RED_CIRCLE = ShapeObject("circle", "red", 14.0, 14.0, 8.0)
BLUE_CIRCLE = ShapeObject("circle", "blue", 48.0, 14.0, 8.0)
STAR = ShapeObject("star", "red", 14.0, 46.0, 8.0)
SCENE = edit_scene("white", (RED_CIRCLE, BLUE_CIRCLE, STAR))


def applied(instruction: str, *scenes: Scene) -> ShapesEdit:
    return apply_instruction(scenes or SCENE, instruction, SHAPES, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("instruction", "objects", "edited"),
    [
        ("make the star green", (RED_CIRCLE, BLUE_CIRCLE, ShapeObject("star", "green", 14.0, 46.0, 8.0)), 2),
        ("make the red circle green", (ShapeObject("circle", "green", 14.0, 14.0, 8.0), BLUE_CIRCLE, STAR), 0),
        ("remove the blue circle", (RED_CIRCLE, STAR), 1),
        ("replace the star with a cross", (RED_CIRCLE, BLUE_CIRCLE, ShapeObject("cross", "red", 14.0, 46.0, 8.0)), 2),
        ("keep the image unchanged", SCENE.objects, None),
    ],
)
def test_what_is_named_changes_and_all_else_stays(
    instruction: str, objects: tuple[ShapeObject, ...], edited: int | None
) -> None:
    edit = applied(instruction)
    assert (edit.target.objects, edit.edited, edit.target.background) == (objects, edited, "white")
    assert edit.source is SCENE
    assert set(edit.untouched) == set(SCENE.objects) & set(objects)
    changed = set(objects) - set(SCENE.objects)
    assert edit.made == (changed.pop() if changed else None)


def test_the_background_changes_alone() -> None:
    edit = applied("make the background black")
    assert (edit.target.background, edit.target.objects, edit.made) == ("black", SCENE.objects, None)


def test_an_added_object_stands_free_and_comes_from_the_first_image_where_there_are_two() -> None:
    first = edit_scene("black", (ShapeObject("square", "purple", 30.0, 30.0, 12.0),))
    for edit in (
        applied("add a purple square"),
        applied("put the shape of the first image into the second", first, SCENE),
    ):
        assert edit.target.objects[:-1] == edit.untouched == SCENE.objects
        made = edit.made
        assert made is not None and (made.shape, made.color) == ("square", "purple")
        assert min(box_gap(bounding_box(made), bounding_box(obj)) for obj in SCENE.objects) >= SHAPES.gap
        assert min(bounding_box(made)) >= 0 and max(bounding_box(made)) <= SHAPES.canvas
        assert edit.target.background == "white"


@pytest.mark.parametrize(
    ("instruction", "scenes", "told"),
    [
        ("make the circle green", (SCENE,), "needs one circle, and the scene holds 2; name its colour too: red circle"),
        ("make the star red", (SCENE,), "changes nothing: it is a red star"),
        ("remove the green star", (SCENE,), "needs one green star, and the scene holds none; name one of"),
        ("remove the red star", (edit_scene("white", (STAR, STAR)),), "holds 2 that are alike"),
        ("remove the star", (edit_scene("white", (STAR,)),), "would leave nothing"),
        ("make the background white", (SCENE,), "changes nothing: the background is white"),
        ("add a red circle", (edit_scene("white", (STAR,) * 4),), "the scene holds 4 objects, and this world's hold"),
        (
            "replace the square with a circle",
            (edit_scene("white", (ShapeObject("square", "red", 13.2, 32.0, 14.0),)),),
            "a circle of that size has no room in the place of the square",
        ),
        ("put the shape of the first image into the second", (SCENE,), r"references (1) must be 2"),
        ("put the shape of the first image into the second", (SCENE, SCENE), "the first scene holds 3 objects"),
        ("add a red circle", (SCENE, SCENE), r"references (2) must be 1"),
    ],
)
def test_scenes_in_which_an_instruction_is_not_clear_are_refused(
    instruction: str, scenes: tuple[Scene, ...], told: str
) -> None:
    with pytest.raises(ValueError) as error:
        applied(instruction, *scenes)
    assert told in str(error.value)


def test_a_crowded_scene_has_no_room() -> None:
    big = edit_scene("white", (ShapeObject("circle", "red", 32.0, 32.0, 31.0),))
    with pytest.raises(ValueError, match="a blue star finds no free place among red circle"):
        applied("add a blue star", big)


def test_an_edit_survives_the_way_to_json_and_back() -> None:
    for instruction in ("add a purple square", "remove the star"):
        edit = applied(instruction)
        assert read_edit(json.loads(json.dumps(edit_record(edit)))) == edit
    with pytest.raises(ValueError, match="describes no edit"):
        read_edit({"prompt": "remove the star"})


def test_the_split_looks_at_the_instruction_or_else_at_what_the_scene_holds() -> None:
    other = edit_scene("black", (STAR,))
    contents = [contents_of(scene) for scene in (SCENE, other)]
    assert contents[1] == ("black", "a red star")
    for instruction in ("make the star blue", "make the star green"):
        assert len({is_held_out_edit(instruction, [one]) for one in contents}) == 1
    shuffled = [("white", *sorted(contents[0][1:], reverse=True))]
    for instruction in ("remove the star", "make the background black", "keep the image unchanged"):
        assert is_held_out_edit(instruction, [contents[0]]) == is_held_out_edit(instruction, shuffled)
    rng = np.random.default_rng(0)
    scenes = [[("white", str(name))] for name in rng.integers(10**9, size=2000)]
    assert 0.07 < np.mean([is_held_out_edit("keep the image unchanged", one) for one in scenes]) < 0.13
