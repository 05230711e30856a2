"""ShapesReward: right on rendered scenes, and its three forms on scenes that miss their captions."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o.rewards import ShapesReward
from blip3o.shapes import SHAPES, TAGS, Scene, ShapeObject, render, sample_scene


def picture(*objects: tuple[str, str, float, float]) -> np.ndarray:
    scene = Scene("white", tuple(ShapeObject(shape, color, x, y, 8.0) for shape, color, x, y in objects), "", "")
    return render(scene, SHAPES)


def scores(image: np.ndarray, caption: str) -> list[float]:
    """Official, strict and soft."""
    return [float(ShapesReward(form=form)(image[None], [caption], [{}])[0]) for form in ("official", "strict", "soft")]


@pytest.mark.parametrize("form", ["official", "strict", "soft"])
def test_every_tag_earns_all_on_its_own_scene_and_not_on_others(form: str) -> None:
    scenes = [sample_scene(SHAPES, 0, index, tag=tag) for tag in TAGS for index in range(3)]
    images = np.stack([render(scene, SHAPES) for scene in scenes])
    captions = [scene.caption for scene in scenes]
    reward = ShapesReward(form=form)  # type: ignore[arg-type]
    assert reward(images, captions, [{}] * len(images)).tolist() == [1.0] * len(images)
    assert reward(images, captions[3:] + captions[:3], [{}] * len(images)).mean() < 0.7
    assert reward.name == f"shapes_{form}"


def test_the_forms_by_hand() -> None:
    one = ("circle", "red", 16, 32)
    assert scores(picture(one, ("circle", "red", 48, 32)), "two red circles") == [1, 1, 1]
    # One of two: the number term is 1/2, the colour term 1/2.
    assert scores(picture(one), "two red circles") == [0, 0, 0.5]
    # The right number, one of a wrong colour: 1 and 1/2.
    assert scores(picture(one, ("circle", "blue", 48, 32)), "two red circles") == [0, 0, 0.75]
    # What is extra hurts only the strict form.
    assert scores(picture(one, ("star", "blue", 48, 32)), "a red circle") == [1, 0, 1]
    # Two numbers and two colours right, the place wrong.
    image = picture(one, ("star", "blue", 48, 32))
    assert scores(image, "a red circle left of a blue star") == [1, 1, 1]
    assert scores(image, "a red circle above a blue star") == [0, 0, pytest.approx(0.8)]


def test_unknown_forms_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"form \('hard'\)"):
        ShapesReward(form="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not a world"):
        ShapesReward(world="moon")
