"""GEdit-Bench: both forms of its files, what is refused, and scores that were worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from PIL import Image

from blip3o.evaluation.gedit import GROUPS, GEdit
from tests.data.pictures import encoded
from tests.evaluation.benchmarks import gedit_fields, gedit_folder, picture

ROWS = [
    gedit_fields(0, "color_alter"),
    gedit_fields(0, "color_alter", "cn"),
    gedit_fields(1, "subject-add", intersection=False),
]


def parquet_folder(folder: Path, *, raw: bool = True) -> Path:
    """The rows as published, two in a row group; the raw picture is not the square one."""
    rows: list[dict[str, Any]] = []
    for index, fields in enumerate(ROWS):
        square = {"bytes": encoded(picture(index, (40, 40))), "path": f"{index}.png"}
        wide = {"bytes": encoded(picture(index, (60, 40))), "path": None}
        rows.append({**fields, "input_image": square, **({"input_image_raw": wide} if raw else {})})
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/train-00000-of-00001.parquet", row_group_size=2)
    return folder


@pytest.mark.parametrize(("form", "size"), [("jsonl", (48, 40)), ("parquet", (60, 40)), ("parquet, no raw", (40, 40))])
def test_rows_are_read_in_their_order(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    folder = gedit_folder(tmp_path, ROWS) if form == "jsonl" else parquet_folder(tmp_path, raw="no raw" not in form)
    benchmark = GEdit(folder)
    assert [item.output for item in benchmark.items] == [
        "fullset/color_alter/en/key0.png",
        "fullset/color_alter/cn/key0.png",
        "fullset/subject-add/en/key1.png",
    ]
    assert [item.fields["intersection"] for item in benchmark.items] == [True, True, False]
    for item in benchmark.items:
        assert np.abs(np.asarray(item.picture()).astype(int) - np.asarray(picture(item.index, size))).max() == 0


def test_a_language_keeps_its_items_and_their_seeds(tmp_path: Path) -> None:
    benchmark = GEdit(gedit_folder(tmp_path, ROWS), "cn")
    assert [(item.output, item.index) for item in benchmark.items] == [("fullset/color_alter/cn/key0.png", 1)]
    with pytest.raises(ValueError, match=r"language \('fr'\) must be en, cn or all"):
        GEdit(tmp_path, "fr")
    with pytest.raises(ValueError, match="holds no row of language cn"):
        GEdit(gedit_folder(tmp_path / "en", ROWS[:1]), "cn")


def test_the_judge_sees_pictures_of_one_area_and_two_questions(tmp_path: Path) -> None:
    benchmark = GEdit(gedit_folder(tmp_path, ROWS))
    assert benchmark.shown(Image.new("RGB", (400, 100))).size == (1024, 256)
    assert benchmark.shown(Image.new("RGB", (32, 32))).size == (512, 512)
    semantics, quality = benchmark.questions(benchmark.items[2])
    assert semantics.shows == ("before", "after") and quality.shows == ("after",)
    assert f"\n{benchmark.items[2].instruction}\n" in semantics.prompt
    assert benchmark.items[2].instruction not in quality.prompt
    for asked in (semantics, quality):
        assert len(json.loads("".join(asked.prompt.splitlines()[-1:]).replace("[", '["').replace("]", '"]'))) == 2


@pytest.mark.parametrize(
    ("semantics", "quality", "scores"),
    [
        ([9, 4], [10, 9], {"SC": 4, "PQ": 9, "O": 6}),
        ([8, 8], [2, 7], {"SC": 8, "PQ": 2, "O": 4}),
        ([0, 10], [10, 10], {"SC": 0, "PQ": 10, "O": 0}),
    ],
)
def test_the_scores_of_an_edit(tmp_path: Path, semantics: list[float], quality: list[float], scores: Any) -> None:
    assert GEdit(gedit_folder(tmp_path, ROWS)).item_scores({"SC": semantics, "PQ": quality}) == scores


def row(group: str, semantics: float | None, quality: float = 0, language: str = "en", subset: bool = True) -> Any:
    scores = None if semantics is None else {"SC": semantics, "PQ": quality, "O": math.sqrt(semantics * quality)}
    return {"group": group, "language": language, "intersection": subset, "scores": scores}


def test_means_by_hand(tmp_path: Path) -> None:
    """Groups weigh the same; languages never mix; the intersection has means of its own; failures enter none."""
    benchmark = GEdit(gedit_folder(tmp_path, ROWS))
    rows = [
        row(GROUPS[0], 4, 9),  # O 6
        row(GROUPS[0], 8, 2, subset=False),  # O 4
        row(GROUPS[0], None, subset=False),
        *(row(group, 1, 4) for group in GROUPS[1:]),  # O 2
        *(row(group, 9, 9, "cn") for group in GROUPS),
        row(GROUPS[0], 1, 1, "cn", subset=False),
    ]
    languages = benchmark.summary(rows)["languages"]
    english = languages["en"]["full"]
    assert english["groups"][GROUPS[0]] == {
        **{"SC": 6, "PQ": 5.5, "O": 5},
        **{"num_items": 3, "num_judged": 2, "num_failures": 1},
    }
    assert english["SC"] == pytest.approx((6 + 10 * 1) / 11)
    assert english["PQ"] == pytest.approx((5.5 + 10 * 4) / 11)
    assert english["O"] == pytest.approx((5 + 10 * 2) / 11)  # of the groups' own O, not the root of SC x PQ
    assert (english["num_items"], english["num_judged"], english["num_failures"]) == (13, 12, 1)
    subset = languages["en"]["intersection"]
    assert (subset["SC"], subset["PQ"], subset["O"]) == pytest.approx((14 / 11, 49 / 11, 26 / 11))
    assert subset["groups"][GROUPS[0]]["num_items"] == 1
    chinese = languages["cn"]
    assert chinese["intersection"]["O"] == 9 and chinese["full"]["O"] == pytest.approx((5 + 10 * 9) / 11)


def test_there_is_no_mean_of_groups_without_every_group(tmp_path: Path) -> None:
    benchmark = GEdit(gedit_folder(tmp_path, ROWS), "en")
    summary = benchmark.summary([row(group, 4, 9, subset=False) for group in GROUPS])
    assert summary["languages"].keys() == {"en"}
    assert summary["languages"]["en"]["full"]["O"] == 6
    assert summary["languages"]["en"]["intersection"]["O"] is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task_type": "dance"}, "line 2 has task_type ('dance'), which must be one of background_change"),
        ({"instruction_language": "fr"}, "line 2 has instruction_language ('fr'), which must be en or cn"),
        ({"Intersection_exist": "yes"}, "line 2 has Intersection_exist ('yes'), which must be bool"),
        ({"instruction": ""}, "line 2 has instruction (''), which must be str and not empty"),
        ({"key": "a/b"}, "line 2: key ('a/b') must be able to name a file"),
        ({"input_image": "none.png"}, "none.png, which is missing; put it there"),
        ({"input_image": 3}, "line 2 has the picture 3, which must be a path"),
        ({"input_image": None, "instruction_language": None}, "line 2 has the picture None"),
        (dict(ROWS[0]), "line 2 has the key, group and language of"),
    ],
)
def test_a_mistake_in_a_line_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = gedit_folder(tmp_path, ROWS) / "metadata.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | changes)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as error:
        GEdit(tmp_path)
    assert told in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["task_type", "key", "instruction", "instruction_language", "input_image"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = gedit_folder(tmp_path, ROWS) / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[2][name]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(ValueError, match=f"line 3 has no field '{name}'.*; add it"):
        GEdit(tmp_path)


def test_files_that_are_no_benchmark_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark_dir .* is no folder"):
        GEdit(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no parquet file and no metadata.jsonl"):
        GEdit(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"key": \n')
    with pytest.raises(ValueError, match=r"metadata.jsonl line 1 is no JSON"):
        GEdit(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("3\n")
    with pytest.raises(ValueError, match=r"metadata.jsonl line 1 is no JSON object but int"):
        GEdit(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="leave one of them there"):
        GEdit(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a.parquet can not be read as parquet"):
        GEdit(tmp_path)


def test_a_table_without_a_field_or_with_an_empty_picture_is_refused(tmp_path: Path) -> None:
    fields = {**ROWS[0], "input_image": {"bytes": None, "path": "x.png"}}
    pq.write_table(pa.Table.from_pylist([fields]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 0 holds no bytes in 'input_image'"):
        GEdit(tmp_path).items[0].picture()
    del fields["key"]
    pq.write_table(pa.Table.from_pylist([fields]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet row 0 has no field 'key'"):
        GEdit(tmp_path)
