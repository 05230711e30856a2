"""The text task: its font, its captions and their split, its scenes and how they are drawn."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from blip3o.shapes import BACKGROUNDS, COLORS, is_held_out
from blip3o.shapes.font import GLYPHS, LETTERS, num_columns, word_cells
from blip3o.shapes.text import (
    TEXT,
    TEXT_MINI,
    TextScene,
    TextWorld,
    get_text_world,
    parse_text_caption,
    render_text,
    sample_text_scene,
    text_evaluation_captions,
    text_metadata,
)

SCENES = [sample_text_scene(TEXT, 3, index, split="all") for index in range(400)]


def test_letters_touch_all_edges_of_their_box_and_differ_by_three_cells_or_more() -> None:
    assert LETTERS == "ABCDEFGHIJKLMNOPQRSTUVWXYZ" and GLYPHS.shape == (26, 7, 5)
    for glyph in GLYPHS:
        assert glyph[0].any() and glyph[-1].any() and glyph[:, 0].any() and glyph[:, -1].any()
    assert min(np.abs(one - other).sum() for one, other in combinations(GLYPHS, 2)) >= 3


def test_the_cells_of_a_word_are_its_letters_with_gaps() -> None:
    cells = word_cells("CAT")
    assert cells.shape == (7, num_columns(3)) == (7, 17)
    for place, letter in enumerate("CAT"):
        assert np.array_equal(cells[:, 6 * place : 6 * place + 5], GLYPHS[LETTERS.index(letter)])
    assert not cells[:, 5::6].any() and not word_cells("?").any()


@pytest.mark.parametrize("world", [TEXT, TEXT_MINI], ids=["text", "text-mini"])
def test_scenes_keep_the_rules_and_lie_within_the_canvas(world: TextWorld) -> None:
    for scene in (sample_text_scene(world, 0, index, split="all") for index in range(200)):
        assert world.lengths[0] <= len(scene.word) <= world.lengths[1] and set(scene.word) <= set(world.letters)
        assert world.heights[0] <= scene.height <= world.heights[1] and scene.color in world.colors
        assert scene.cell == pytest.approx(scene.height / 7)
        assert scene.x >= 0 and scene.x + num_columns(len(scene.word)) * scene.cell <= world.canvas + 1e-9
        assert scene.y >= 0 and scene.y + scene.height <= world.canvas
        assert scene.caption == f"the word {scene.word} in {scene.color}"


def test_everything_is_drawn_and_everywhere() -> None:
    assert set(Counter(len(scene.word) for scene in SCENES)) == {3, 4, 5}
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS) and {scene.color for scene in SCENES} == set(
        COLORS
    )
    assert {letter for scene in SCENES for letter in scene.word} == set(LETTERS)
    assert max(scene.height for scene in SCENES) > 19
    assert min(scene.x for scene in SCENES) < 1 and max(scene.y + scene.height for scene in SCENES) > 63


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert sample_text_scene(TEXT, 3, 5, split="all") == SCENES[5]
    assert len({sample_text_scene(TEXT, seed, index) for seed in (0, 1) for index in range(20)}) == 40


def test_a_tenth_of_the_captions_is_held_out_and_splits_never_meet() -> None:
    assert 0.05 < np.mean([is_held_out(scene.caption) for scene in SCENES]) < 0.16
    for split, held_out in (("train", False), ("held_out", True)):
        captions = [sample_text_scene(TEXT, 0, index, split=split).caption for index in range(60)]  # type: ignore[arg-type]
        assert all(is_held_out(caption) == held_out for caption in captions)


def test_evaluation_captions_are_held_out_and_stay_as_more_are_asked() -> None:
    captions = text_evaluation_captions(TEXT, 50, 0)
    assert len(set(captions)) == 50 and all(is_held_out(caption) for caption in captions)
    assert captions[:20] == text_evaluation_captions(TEXT, 20, 0) != text_evaluation_captions(TEXT, 20, 1)
    with pytest.raises(ValueError, match=r"num_captions \(0\)"):
        text_evaluation_captions(TEXT, 0, 0)


def test_every_pixel_is_inked_by_the_share_that_lies_under_the_word() -> None:
    """Against the same scene drawn at 20 times the size, without anti-aliasing."""
    scene = TextScene("white", "RAGS", "red", 3.35, 20.6, 16.8, "")
    places = (np.arange(64 * 20) + 0.5) / 20
    rows, columns = (np.floor((places - start) / scene.cell).astype(int) for start in (scene.y, scene.x))
    cells = np.pad(word_cells("RAGS"), 1)
    ink = cells[np.clip(rows, -1, 7) + 1][:, np.clip(columns, -1, 23) + 1]
    coverage = ink.reshape(64, 20, 64, 20).mean((1, 3))[..., None]
    expected = 255 + coverage * (np.array(COLORS["red"]) - 255)
    picture = render_text(scene, TEXT)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert np.abs(picture - expected).max() < 0.06 * 255 and np.abs(picture - expected).mean() < 0.5


def test_captions_are_read_and_described() -> None:
    spec = parse_text_caption("the word CAT in red", TEXT)
    assert (spec.word, spec.color) == ("CAT", "red")
    line = text_metadata("the word CAT in red", TEXT)
    assert line == {"tag": "text", "word": "CAT", "color": "red", "prompt": "the word CAT in red"}
    assert json.loads(json.dumps(line)) == line
    for caption in ("the word cat in red", "the word AT in red", "the word CATTLE in red", "the word CAT in pink"):
        with pytest.raises(ValueError, match="cannot be read: write it like"):
            parse_text_caption(caption, TEXT)
    with pytest.raises(ValueError, match="one of the colours"):
        parse_text_caption("the word CAT in orange", TEXT_MINI)


def test_worlds_are_checked_and_found_by_name() -> None:
    assert get_text_world("text-mini") is TEXT_MINI and get_text_world(TEXT) is TEXT
    wrong = {
        r"colors \(\('pink',\)\)": {"colors": ("pink",)},
        r"letters \(AA\)": {"letters": "AA"},
        r"lengths \(0, 5\)": {"lengths": (0, 5)},
        r"heights \(20, 12\)": {"heights": (20, 12)},
        "do not fit words of 6 letters on 64 pixels": {"lengths": (3, 6), "heights": (13, 20)},
        "do not fit words of 5": {"heights": (12, 65)},
    }
    for told, arguments in wrong.items():
        with pytest.raises(ValueError, match=told):
            TextWorld(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name \('shapes'\) is not a world of words"):
        get_text_world("shapes")
    with pytest.raises(ValueError, match="tag_weights"):
        sample_text_scene(TEXT, 0, 0, tag_weights={"text": 1.0})
    with pytest.raises(ValueError, match=r"split \('val'\)"):
        sample_text_scene(TEXT, 0, 0, split="val")  # type: ignore[arg-type]
    lone = TextWorld(colors=("red",), letters="A", lengths=(3, 3))
    with pytest.raises(ValueError, match="has no captions in this world"):
        sample_text_scene(lone, 0, 0, split="train" if is_held_out("the word AAA in red") else "held_out")
