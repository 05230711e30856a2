"""Prompt files: what is read, and that every bad line is told of by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip3o.bulk.prompts import Prompt, pictures_of, read_prompts


def written(folder: Path, content: str | bytes, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    prompts = read_prompts(written(tmp_path, "a circle\r\nzwei größere Kreise\n", "p.txt"))
    assert [one.prompt for one in prompts] == ["a circle", "zwei größere Kreise"]
    assert [one.place for one in prompts] == ["line 1", "line 2"]
    assert {one.file for one in pictures_of(prompts, num_images=1, seed=0)[0]} == {"00000.png", "00001.png"}


def test_a_json_line_may_name_seed_and_file_and_carry_more(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a circle", "seed": -5, "name": "round/one", "tag": "colors", "objects": [1, 2]},
        {"prompt": "a square", "filename": "b.v1.png"},
        {"prompt": "a triangle", "name": "v1.5"},
    ]
    prompts = read_prompts(written(tmp_path, "\ufeff" + "\n".join(map(json.dumps, lines))))
    assert prompts[0] == Prompt("a circle", -5, "round/one", {"tag": "colors", "objects": [1, 2]}, "line 1")
    pictures, faults = pictures_of(prompts, num_images=2, seed=100)
    assert faults == []
    assert [(one.file, one.seed) for one in pictures] == [
        *(("round/one-0.png", -5), ("round/one-1.png", -4)),
        *(("b.v1-0.png", 102), ("b.v1-1.png", 103)),
        *(("v1.5-0.png", 104), ("v1.5-1.png", 105)),
    ]


GOOD = '{"prompt": "a circle"}'
BAD: list[tuple[str | bytes, str]] = [
    (f"{GOOD}\n\n{GOOD}", "line 2 is empty"),
    (f'{GOOD}\n{{"prompt": "  "}}', "line 2 is empty, or its prompt is"),
    (f'{GOOD}\n{{"prompt": "a', "line 2 is no JSON (Unterminated string"),
    ('["a circle"]', "line 1 is no JSON object"),
    ('{"caption": "a circle"}', "line 1 has no field 'prompt'"),
    ('{"prompt": 3}', "line 1 has the prompt 3, which must be a string"),
    ('{"prompt": "a", "seed": 1.5}', "line 1 has the seed 1.5, which must be a whole number"),
    ('{"prompt": "a", "seed": true}', "line 1 has the seed True"),
    ('{"prompt": "a", "name": 7}', "line 1 has the name 7, which must be a string"),
    ('{"prompt": "a", "filename": "a.jpg"}', "line 1 has the filename 'a.jpg', which must end in .png"),
    ('{"prompt": "a", "filename": "a.png", "name": "a"}', "line 1 has both name and filename"),
    (b'{"prompt": "a\xff"}', "line 1 is no UTF-8"),
    ("", "holds no line"),
    ("\n".join(["{"] * 7), "line 5 is no JSON"),
]


@pytest.mark.parametrize(("content", "told"), BAD, ids=[told for _, told in BAD])
def test_a_bad_line_is_told_of_by_its_number(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(ValueError) as error:
        read_prompts(written(tmp_path, content))
    assert told in str(error.value) and "prompts.jsonl" in str(error.value)


def test_of_many_bad_lines_the_first_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 is empty.*line 5 is empty.*; and 2 more\.$"):
        read_prompts(written(tmp_path, "\n" * 7, "p.txt"))


@pytest.mark.parametrize("name", ["p.csv", "none.txt"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must end in .txt or .jsonl|can not be read: No such file"):
        read_prompts(tmp_path / name)


LEAVES = ["../a", "/a", "a/../../b", "a\\b"]
NONE = ["", " ", ".", "a/", "a\nb", "\0", "é" * 101]


@pytest.mark.parametrize("name", [*LEAVES, *NONE], ids=repr)
def test_names_that_leave_the_folder_or_name_no_file_are_refused(name: str) -> None:
    pictures, faults = pictures_of([Prompt("a", name=name, place="line 1")], num_images=1, seed=0)
    assert not pictures
    told = "leaves the folder" if name in LEAVES else "is none of a file" if len(name) < 100 else "too long"
    assert len(faults) == 1 and faults[0].startswith("line 1 has the name") and told in faults[0]


@pytest.mark.parametrize(
    ("names", "num_images", "told"),
    [
        (["a", None, "a.png"], 1, "line 3 has the file a.png of line 1"),
        (["a", "A"], 1, "line 2 has the file A.png of line 1"),
        ([None, "00000"], 1, "line 2 has the file 00000.png of line 1"),
        (["a", "b/a-1", "b/a"], 2, ""),
        (["a", "a.png/b"], 1, "line 2 has a file in a.png, which is the file of line 1"),
    ],
)
def test_two_prompts_never_share_a_file(names: list[str | None], num_images: int, told: str) -> None:
    prompts = [Prompt("a", name=name, place=f"line {number}") for number, name in enumerate(names, start=1)]
    assert pictures_of(prompts, num_images=num_images, seed=0)[1] == ([told] if told else [])


def test_seeds_and_fields_that_can_not_be_used_are_refused() -> None:
    prompts = [Prompt("a", seed=2**63 - 1, place="line 1"), Prompt("a", fields={"file": "x"}, place="line 2")]
    assert pictures_of(prompts[:1], num_images=1, seed=0)[1] == []
    faults = pictures_of(prompts, num_images=2, seed=0)[1]
    assert "line 1 has the seed 9223372036854775807" in faults[0] and "line 2 has the field 'file'" in faults[1]
