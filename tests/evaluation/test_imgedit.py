"""ImgEdit-Bench: what is read, what is refused, and scores that were worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip3o.evaluation.imgedit import ImgEdit
from blip3o.evaluation.imgedit_prompts import TYPES
from tests.evaluation.benchmarks import imgedit_folder, picture


def test_items_are_read_in_their_order(tmp_path: Path) -> None:
    benchmark = ImgEdit(imgedit_folder(tmp_path, ["style", "alter", "add"]))
    assert [(item.key, item.group, item.index) for item in benchmark.items] == [
        ("100", "style", 0),
        ("101", "adjust", 1),  # as the file in the repository calls it
        ("102", "add", 2),
    ]
    assert benchmark.items[1].instruction == "a green square left of a circle"
    assert benchmark.items[1].output == "images/101.png"
    assert benchmark.items[1].picture().size == picture(1).size


def test_the_archive_s_name_of_the_file_is_known(tmp_path: Path) -> None:
    imgedit_folder(tmp_path, ["add"])
    (tmp_path / "basic_edit.json").rename(tmp_path / "singleturn.json")
    assert len(ImgEdit(tmp_path).items) == 1


def test_each_type_has_words_of_its_own_with_the_instruction_in_them(tmp_path: Path) -> None:
    benchmark = ImgEdit(imgedit_folder(tmp_path))
    prompts = [benchmark.questions(item)[0].prompt for item in benchmark.items]
    assert (
        len({prompt.replace(item.instruction, "") for prompt, item in zip(prompts, benchmark.items, strict=True)}) == 9
    )
    for prompt, item in zip(prompts, benchmark.items, strict=True):
        assert f"\n{item.instruction}\n" in prompt and '"scores": [first, second, third]}' in prompt
        assert json.loads(prompt.splitlines()[-1].replace("first, second, third", "1, 2, 3"))["scores"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "item"),
    [
        ([5, 5, 5], 5.0),
        ([4, 3, 5], 11 / 3),  # 4, 3 and 5 capped at 4
        ([1, 5, 5], 1.0),
        ([2, 1, 4], 5 / 3),
        ([3, 2, 1], 2.0),  # the first is never lowered
    ],
)
def test_the_first_score_caps_the_others(tmp_path: Path, given: list[float], item: float) -> None:
    benchmark = ImgEdit(imgedit_folder(tmp_path, ["add"]))
    assert benchmark.item_scores({"edit": given}) == {"item": pytest.approx(item)}


def row(group: str, item: float | None) -> dict[str, Any]:
    return {"group": group, "scores": None if item is None else {"item": item}}


def test_means_by_hand(tmp_path: Path) -> None:
    """Types weigh the same, however many items they have; failures are counted and enter no mean."""
    benchmark = ImgEdit(imgedit_folder(tmp_path, ["add"]))
    rows = [row("add", 5), row("add", 2), row("add", None), row("adjust", 4), *(row(kind, 1) for kind in TYPES[2:])]
    summary = benchmark.summary(rows)
    assert summary["types"]["add"] == {"mean": 3.5, "num_items": 3, "num_judged": 2, "num_failures": 1}
    assert summary["types"]["adjust"]["mean"] == 4
    assert summary["overall"] == pytest.approx((3.5 + 4 + 7 * 1) / 9)
    assert summary["mean_of_items"] == pytest.approx((5 + 2 + 4 + 7 * 1) / 10)


def test_there_is_no_overall_score_without_every_type(tmp_path: Path) -> None:
    benchmark = ImgEdit(imgedit_folder(tmp_path, ["add"]))
    summary = benchmark.summary([row("add", 5), row("style", None)])
    assert summary["overall"] is None and summary["mean_of_items"] == 5
    assert summary["types"]["style"]["mean"] is None and summary["types"]["remove"]["num_items"] == 0


def change(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda entries: entries["101"].update({name: value})


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no id": (
        lambda entries: entries["101"].pop("id"),
        "key '101' has no field 'id' (it has prompt, edit_type)",
    ),
    "no prompt": (lambda entries: entries["101"].pop("prompt"), "key '101' has no field 'prompt'"),
    "empty prompt": (change("prompt", " "), "key '101' has prompt (' '), which must be str and not empty"),
    "number": (change("prompt", 3), "key '101' has prompt (3), which must be str"),
    "type": (
        change("edit_type", "dance"),
        "key '101' has edit_type ('dance'), which must be one of add, adjust",
    ),
    "picture": (change("id", "pictures/none.jpg"), "pictures/none.jpg, which is missing; put it there"),
    "no object": (lambda entries: entries.update({"101": "a red circle"}), "key '101' is no JSON object but str"),
    "key": (lambda entries: entries.update({"../101": entries["101"]}), "key ('../101') must be able to name a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, mistake: str) -> None:
    path = imgedit_folder(tmp_path, ["add", "style"]) / "basic_edit.json"
    alter, told = MISTAKES[mistake]
    entries = json.loads(path.read_text())
    alter(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError) as error:
        ImgEdit(tmp_path)
    assert told in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"100": ', "can not be read as JSON"),
        ("[]", "holds no items"),
        ("{}", "holds no items"),
        ('{"100": {}, "100": {}}', "repeats the keys 100; leave each in once"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "basic_edit.json").write_text(text)
    with pytest.raises(ValueError) as error:
        ImgEdit(tmp_path)
    assert told in str(error.value) and "basic_edit.json" in str(error.value)


def test_a_missing_folder_file_or_decodable_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark_dir .* is no folder"):
        ImgEdit(tmp_path / "none")
    with pytest.raises(ValueError, match=r"benchmark_dir .* holds no basic_edit.json"):
        ImgEdit(tmp_path)
    benchmark = ImgEdit(imgedit_folder(tmp_path, ["add"]))
    (tmp_path / "pictures/000.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"key '100': the picture .*000.jpg is no picture of a known kind"):
        benchmark.items[0].picture()
