"""ShapesTextReward: exact and soft, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o.rewards import ShapesTextReward
from blip3o.rewards.shapes_text import edit_distance
from blip3o.shapes.text import TEXT, TextScene, render_text, sample_text_scene


def picture(word: str, color: str = "red", background: str = "white") -> np.ndarray:
    return render_text(TextScene(background, word, color, 3.3, 20.2, 13.0, ""), TEXT)  # type: ignore[arg-type]


def scores(image: np.ndarray, caption: str) -> list[float]:
    """Exact and soft."""
    return [float(ShapesTextReward(form=form)(image[None], [caption], [{}])[0]) for form in ("exact", "soft")]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("CAT", "CAT", 0), ("", "CAT", 3), ("CAT", "", 3), ("CAT", "CUT", 1), ("CATS", "CAT", 1),
     ("KITTEN", "SITTING", 3), ("ABCD", "BCDA", 2)],
)  # fmt: skip
def test_edit_distances_by_hand(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_the_forms_by_hand() -> None:
    assert scores(picture("CAT"), "the word CAT in red") == [1, 1]
    assert scores(picture("CUT", background="black"), "the word CAT in red") == [0, pytest.approx(2 / 3)]
    assert scores(picture("CATS"), "the word CAT in red") == [0, pytest.approx(2 / 3)]
    assert scores(picture("CAT", "blue"), "the word CAT in red") == [0, 0.5]
    assert scores(picture("CUT", "blue"), "the word CAT in red") == [0, pytest.approx(1 / 3)]
    assert scores(picture("ZEBRA"), "the word CUT in red") == [0, 0], "never below 0"
    assert scores(np.full((64, 64, 3), 255, np.uint8), "the word CAT in red") == [0, 0]


def test_a_letter_that_can_not_be_read_counts_as_one_edit() -> None:
    image = picture("GAME")
    left = int(3.3 + 6 * 13 / 7)
    image[20:34, left : left + 10] = (220, 30, 30)
    assert scores(image, "the word GAME in red") == [0, 0.75]


def test_scenes_earn_all_and_others_nothing_or_little() -> None:
    scenes = [sample_text_scene(TEXT, 0, index) for index in range(12)]
    images, captions = np.stack([render_text(scene, TEXT) for scene in scenes]), [scene.caption for scene in scenes]
    for form in ("exact", "soft"):
        reward = ShapesTextReward(form=form)
        assert reward(images, captions, [{}] * 12).tolist() == [1.0] * 12
        assert reward(images, captions[1:] + captions[:1], [{}] * 12).mean() < 0.3
        assert reward.name == f"text_{form}" and reward.range == (0.0, 1.0)


def test_unknown_forms_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"form \('strict'\)"):
        ShapesTextReward(form="strict")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not a world of words"):
        ShapesTextReward(world="shapes")
