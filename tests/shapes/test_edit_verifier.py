"""Scoring edits: clean targets are right and exact, and whatever goes wrong fails for its own reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from blip3o.shapes import (
    ALL_KINDS,
    SHAPES,
    SHAPES_MINI,
    EditVerdict,
    Scene,
    ShapeObject,
    ShapesEdit,
    World,
    apply_instruction,
    edited_region,
    render,
    sample_edit,
    verify_edits,
)
from blip3o.shapes.edits import edit_scene

SQUARE = ShapeObject("square", "blue", 15.0, 15.0, 8.0)
STAR = ShapeObject("star", "red", 46.0, 44.0, 9.0)
CROSS = ShapeObject("cross", "purple", 46.0, 13.0, 8.0)
SCENE = edit_scene("white", (SQUARE, STAR))


def edit_of(instruction: str, scene: Scene = SCENE) -> ShapesEdit:
    return apply_instruction(scene, instruction, SHAPES, np.random.default_rng(0))


def judged(edit: ShapesEdit, *objects: ShapeObject, background: str | None = None) -> EditVerdict:
    """The verdict on a picture of other objects than expected."""
    drawn = edit_scene(background or edit.target.background, objects)  # type: ignore[arg-type]
    return verify_edits([render(drawn, SHAPES)], [edit], SHAPES)[0]


def moved(obj: ShapeObject, dx: float) -> ShapeObject:
    return replace(obj, x=obj.x + dx)


@pytest.mark.parametrize("world", [SHAPES, SHAPES_MINI], ids=["shapes", "mini"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_clean_targets_are_right_and_sources_are_not(world: World, kind: str) -> None:
    edits = [
        sample_edit(world, 5, index, kind=kind, split=split)  # type: ignore[arg-type]
        for split in ("train", "held_out")
        for index in range(75)
    ]
    for verdict in verify_edits([render(edit.target, world) for edit in edits], edits, world):
        assert verdict.success and verdict.consistent and verdict.error == 0
        assert verdict.reason == verdict.drift == ""
    for verdict in verify_edits([render(edit.source, world) for edit in edits[::3]], edits[::3], world):
        assert verdict.success == (kind == "reconstruct")
        assert verdict.consistent and verdict.error == 0, "nothing that had to stay has changed"


@pytest.mark.parametrize("world", [SHAPES, SHAPES_MINI], ids=["shapes", "mini"])
def test_noise_and_blur_are_neither_failure_nor_drift(world: World) -> None:
    edits = [sample_edit(world, 6, index, kind_weights=dict.fromkeys(ALL_KINDS, 1.0)) for index in range(100)]
    clean = np.stack([render(edit.target, world) for edit in edits]).astype(float)
    noisy = clean + np.random.default_rng(0).normal(0, 8, clean.shape)
    for pictures in (noisy, ndimage.gaussian_filter(clean, (0, 1, 1, 0))):
        verdicts = verify_edits(np.rint(pictures).clip(0, 255).astype(np.uint8), edits, world)
        assert np.mean([verdict.success for verdict in verdicts]) >= 0.97
        assert np.mean([verdict.consistent for verdict in verdicts]) >= 0.97
        assert 0 < max(verdict.error for verdict in verdicts) < 0.1


def test_another_place_is_right_for_an_added_object() -> None:
    edit = edit_of("add a purple cross")
    for x, y in ((46.0, 13.0), (14.0, 48.0)):
        verdict = judged(edit, SQUARE, STAR, replace(CROSS, x=x, y=y))
        assert verdict.success and verdict.consistent and verdict.error == 0


GREEN = replace(STAR, color="green")
FAILURES: dict[str, tuple[str, tuple[ShapeObject, ...], str, str]] = {
    "wrong colour": (
        "make the star green",
        (SQUARE, replace(STAR, color="yellow")),
        "expected green star, found none; expected nothing else, found yellow star",
        "",
    ),
    "wrong object": (
        "make the star green",
        (replace(SQUARE, color="green"), STAR),
        "expected blue square and green star, found none; expected nothing else, found green square and red star",
        "the blue square is gone",
    ),
    "extra object": ("make the star green", (SQUARE, GREEN, CROSS), "expected nothing else, found purple cross", ""),
    "moved object": ("make the star green", (moved(SQUARE, 5), GREEN), "", "the blue square is 5.0 pixels off"),
    "moved edit": ("make the star green", (SQUARE, moved(GREEN, -6)), "the green star is 6.0 pixels off", ""),
    "moved replacement": (
        "replace the star with a circle",
        (SQUARE, replace(STAR, shape="circle", y=36.0)),
        "the red circle is 8.0 pixels off",
        "",
    ),
    "still there": ("remove the star", (SQUARE, STAR), "expected nothing else, found red star", ""),
    "all removed": ("remove the star", (), "expected blue square, found none", "the blue square is gone"),
    "not added": ("add a purple cross", (SQUARE, STAR), "expected purple cross, found none", ""),
    "added twice": (
        "add a purple cross",
        (SQUARE, STAR, CROSS, replace(CROSS, x=14.0, y=48.0)),
        "expected nothing else, found purple cross",
        "",
    ),
    "other changed": (
        "add a purple cross",
        (SQUARE, replace(STAR, color="green"), CROSS),
        "expected red star, found none; expected nothing else, found green star",
        "the red star is gone",
    ),
    "one not kept": (
        "keep the image unchanged",
        (SQUARE,),
        "expected red star, found none",
        "the red star is gone",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_fails_for_its_own_reason(name: str) -> None:
    instruction, objects, reason, drift = FAILURES[name]
    verdict = judged(edit_of(instruction), *objects)
    assert (verdict.reason, verdict.drift) == (reason, drift)
    assert (verdict.success, verdict.consistent) == (not reason, not drift)


def test_a_shift_within_two_pixels_is_no_drift() -> None:
    assert judged(edit_of("make the star green"), moved(SQUARE, 1.5), GREEN).consistent


def test_the_background_is_asked_for_or_has_to_stay() -> None:
    edit = edit_of("make the background black")
    assert judged(edit, SQUARE, STAR, background="white").reason == "expected a black background, found white"
    turned = judged(edit_of("make the star green"), SQUARE, GREEN, background="black")
    assert turned.success and turned.drift == "the background was white and is black"
    assert turned.error > 0.5


def test_junk_is_told() -> None:
    edit = edit_of("make the star green")
    picture = render(edit.target, SHAPES)
    picture[40:60, 2:30] = (220, 30, 30)
    (verdict,) = verify_edits([picture], [edit], SHAPES)
    assert not verdict.success and "matches no shape" in verdict.reason
    assert verdict.consistent and verdict.error > 0.05
    (grey,) = verify_edits([np.full_like(picture, 128)], [edit], SHAPES)
    assert "neither white nor black" in grey.reason and "the blue square is gone" in grey.drift


def test_alike_objects_are_told_apart_by_their_places() -> None:
    two = edit_scene("white", (SQUARE, replace(STAR, shape="square"), CROSS))
    edit = edit_of("make the red square blue", two)
    first, second, _ = edit.target.objects
    assert judged(edit, second, first, CROSS).success
    off = judged(edit, moved(first, 4), second, CROSS)
    assert (off.reason, off.drift) == ("", "the blue square is 4.0 pixels off")
    off = judged(edit, first, moved(second, -4), CROSS)
    assert (off.reason, off.drift) == ("the blue square is 4.0 pixels off", "")


def test_the_error_is_that_of_the_pixels_outside_the_region() -> None:
    edit = edit_of("make the star green")
    region = edited_region(edit, SHAPES)
    rows, columns = np.nonzero(region)
    # The star's own pixels, widened by two on each side.
    drawn = (render(edit_scene("white", (STAR,)), SHAPES) != 255).any(axis=-1)
    assert (rows.min(), rows.max()) == (np.nonzero(drawn)[0].min() - 2, np.nonzero(drawn)[0].max() + 2)
    assert (columns.min(), columns.max()) == (np.nonzero(drawn)[1].min() - 2, np.nonzero(drawn)[1].max() + 2)
    picture = render(edit.target, SHAPES)
    picture[region] = 7
    assert verify_edits([picture], [edit], SHAPES)[0].error == 0
    picture = render(edit.target, SHAPES)
    picture[0, 0] = 0
    (verdict,) = verify_edits([picture], [edit], SHAPES)
    assert verdict.error == pytest.approx(1 / (~region).sum())
    assert region.mean() > 0.6 or (~region).sum() > 2000


def test_objects_alone_have_to_stay_where_the_background_changes() -> None:
    edit = edit_of("make the background black")
    stays = ~edited_region(edit, SHAPES)
    assert np.array_equal(stays, (render(edit.source, SHAPES) == render(edit.target, SHAPES)).all(axis=-1))
    assert stays[15, 15] and stays[44, 46] and not stays[0, 0]
    assert stays.sum() / (4 * (0.93 * 8) ** 2 + 5 * 1.05 * 0.4725 * np.sin(np.pi / 5) * 81) + 0.25 > 0.9


def test_nothing_may_change_where_nothing_is_edited_or_added() -> None:
    assert not edited_region(edit_of("keep the image unchanged"), SHAPES).any()
    assert not edited_region(edit_of("add a purple cross"), SHAPES).any(), "it was not found"


def test_one_verdict_a_picture() -> None:
    assert verify_edits([], [], SHAPES) == []
    with pytest.raises(ValueError, match=r"edits \(0\) must be as many as images \(1\)"):
        verify_edits([render(SCENE, SHAPES)], [], SHAPES)
    with pytest.raises(ValueError, match="canvas, 64 pixels"):
        verify_edits([np.zeros((32, 32, 3), dtype=np.uint8)], [edit_of("remove the star")], SHAPES)
