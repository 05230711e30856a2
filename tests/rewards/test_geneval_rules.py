"""GenEval's rules on synthetic detections: every tag, hand-computed."""

from __future__ import annotations

from typing import Any

import pytest

from blip3o.rewards.geneval_rules import Form, Found, judge, kept, relations


def box(x: float, y: float, half: float = 10.0) -> Found:
    return Found((x - half, y - half, x + half, y + half))


def colored(*colors: str) -> list[Found]:
    return [Found((0, 0, 1, 1), color=color) for color in colors]


def wanted(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def line(tag: str, *include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), **({"exclude": list(exclude)} if exclude else {})}


SINGLE = line("single_object", wanted("bench"))
TWO = line("two_object", wanted("bench"), wanted("cat"))
COUNTING = line("counting", wanted("cat", 3), exclude=(wanted("cat", 4),))
COLORS = line("colors", wanted("cat", color="red"))
POSITION = line("position", wanted("cat"), wanted("dog", position=["left of", 0]))
ATTRIBUTES = line("color_attr", wanted("cat", color="red"), wanted("dog", color="blue"))


@pytest.mark.parametrize(
    ("metadata", "objects", "official", "strict", "soft"),
    [
        (SINGLE, {"bench": [box(0, 0)]}, 1, 1, 1.0),
        (SINGLE, {"bench": [box(0, 0), box(9, 9)]}, 1, 0, 0.0),  # |1 - 2| / 1
        (SINGLE, {"cat": [box(0, 0)]}, 0, 0, 0.0),
        (TWO, {"bench": [box(0, 0)], "cat": [box(9, 9)], "dog": [box(5, 5)]}, 1, 1, 1.0),
        (TWO, {"bench": [box(0, 0)]}, 0, 0, 0.5),
        (COUNTING, {"cat": [box(0, 0)] * 3}, 1, 1, 1.0),
        (COUNTING, {"cat": [box(0, 0)] * 4}, 0, 0, 2 / 3),  # enough, but what is excluded is there
        (COUNTING, {"cat": [box(0, 0)] * 2}, 0, 0, 2 / 3),
        (COUNTING, {"cat": [box(0, 0)] * 7}, 0, 0, 0.0),
        (COLORS, {"cat": colored("red")}, 1, 1, 1.0),
        (COLORS, {"cat": colored("blue")}, 0, 0, 0.5),
        (COLORS, {"cat": colored("blue", "red")}, 0, 0, 0.5),  # the more confident one is blue
        (COLORS, {"cat": colored("red", "blue")}, 1, 0, 0.5),  # cut to one, which is red
        (COLORS, {}, 0, 0, 0.0),
        (POSITION, {"cat": [box(100, 0)], "dog": [box(0, 0)]}, 1, 1, 1.0),
        (POSITION, {"cat": [box(0, 0)], "dog": [box(100, 0)]}, 0, 0, 2 / 3),
        (POSITION, {"dog": [box(0, 0)]}, 0, 0, 1 / 3),  # no cat: number 0, number 1, place 0
        (POSITION, {"cat": [box(100, 0), box(-100, 0)], "dog": [box(0, 0)]}, 1, 0, 2 / 3),
        (ATTRIBUTES, {"cat": colored("red"), "dog": colored("blue")}, 1, 1, 1.0),
        (ATTRIBUTES, {"cat": colored("blue"), "dog": colored("red")}, 0, 0, 0.5),
        (ATTRIBUTES, {"cat": colored("red"), "dog": colored("red")}, 0, 0, 0.75),
    ],
)
def test_every_tag_by_hand(
    metadata: dict[str, Any], objects: dict[str, list[Found]], official: int, strict: int, soft: float
) -> None:
    for form, expected in (("official", official), ("strict", strict)):
        outcome = judge(objects, metadata, form)  # type: ignore[arg-type]
        assert (outcome.correct, outcome.score, outcome.reason == "") == (bool(expected), expected, bool(expected))
    outcome = judge(objects, metadata, "soft")
    assert outcome.score == pytest.approx(soft)
    assert outcome.correct == (outcome.reason == "") == (soft == 1)


def test_a_position_counts_once_however_many_pairs_fail_it() -> None:
    metadata = line("position", wanted("cat", 2), wanted("dog", 2, position=["above", 0]))
    objects = {"cat": [box(0, 0), box(50, 0)], "dog": [box(0, 90), box(50, 90)]}
    assert judge(objects, metadata, "soft").score == pytest.approx(2 / 3)  # two numbers right, one place wrong


def test_one_pair_out_of_place_fails_the_position() -> None:
    metadata = line("position", wanted("cat"), wanted("dog", 2, position=["left of", 0]))
    objects = {"cat": [box(100, 0)], "dog": [box(0, 0), box(200, 0)]}
    assert not judge(objects, metadata, "official").correct
    assert judge({"cat": [box(300, 0)], "dog": objects["dog"]}, metadata, "official").correct


@pytest.mark.parametrize(
    ("dx", "dy", "names"),
    [
        (-100, 0, {"left of"}),
        (100, 0, {"right of"}),
        (0, -100, {"above"}),
        (0, 100, {"below"}),
        (-100, -100, {"left of", "above"}),  # (100 - 4) / 141.4 = 0.68 on both axes
        (4, 0, set()),  # all of the offset is within 0.1 x (20 + 20)
        (8, 0, set()),  # (8 - 4) / 8 = 0.5 is not more than 0.5
        (8.1, 0, {"right of"}),
        (100, 54, {"right of"}),  # 96 / 113.6 = 0.845 and 50 / 113.6 = 0.44
        (0, 0, set()),
    ],
)
def test_relations_shrink_the_offset_and_divide_by_the_whole_of_it(dx: float, dy: float, names: set[str]) -> None:
    assert relations(box(dx, dy), box(0, 0)) == names


def test_detections_are_filtered_sorted_and_cut() -> None:
    scores = [0.3, 0.31, 0.95, 0.9]
    found = [Found((0, 0, 1, 1), score) for score in scores]
    assert [one.score for one in kept(found, "colors")] == [0.95, 0.9, 0.31]
    assert [one.score for one in kept(found, "counting")] == [0.95]
    assert len(kept([Found((0, 0, 1, 1), 0.5)] * 20, "two_object")) == 16


@pytest.mark.parametrize("form", ["official", "strict"])
def test_what_is_excluded_fails_at_its_number(form: Form) -> None:
    metadata = line("single_object", wanted("cat"), exclude=(wanted("dog", 2),))
    assert judge({"cat": [box(0, 0)], "dog": [box(1, 1)]}, metadata, form).correct
    outcome = judge({"cat": [box(0, 0)], "dog": [box(1, 1)] * 2}, metadata, form)
    assert (outcome.correct, outcome.reason) == (False, "expected dog<2, found 2")


def test_unknown_forms_and_metadata_without_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"form \('loose'\)"):
        judge({}, SINGLE, "loose")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must list what the picture includes"):
        judge({}, {"tag": "colors"})
