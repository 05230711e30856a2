"""Every format gives its captions and pictures, and rows that can not be used say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.data.pictures import Limits, Unreadable
from blip3o.data.sources import DatasetSource, InstructionSource, RawRow, ShareGPTSource, Source, TarSource, decode
from tests.data.pictures import BROKEN, color, encoded, plain, write_jsonl, write_rows, write_tar


def read(source: Source, start: int = 0) -> list[tuple[str, Any]]:
    """Caption, target's colour and references' colours of every row, or what is wrong with it."""
    found: list[tuple[str, Any]] = []
    for shard in source.shards():
        for row in source.rows(shard, start):
            try:
                record = decode(row)
                colors = [picture.getpixel((0, 0)) for picture in (record.image, *record.references)]
                found.append((record.caption, colors))
            except Unreadable as error:
                found.append((row.key.rpartition("/")[2], str(error)))
    return found


def close(colors: list[Any], numbers: list[int]) -> bool:
    pairs = zip(colors, numbers, strict=True)
    return all(abs(a - b) < 8 for found, number in pairs for a, b in zip(found, color(number), strict=True))


def test_tars_of_pictures_and_texts(tmp_path: Path) -> None:
    files = {}
    for number, kind in enumerate(("JPEG", "PNG", "WEBP")):
        extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
        files |= {f"a/{number}.{extension}": plain(number * 5, kind=kind), f"a/{number}.txt": b" row %d \n" % number}
    write_tar(tmp_path / "0.tar", files)
    write_rows(tmp_path / "1.tar", [7, 9])
    rows = read(TarSource(tars=str(tmp_path / "*.tar")))
    assert [caption for caption, _ in rows] == ["row 0", "row 1", "row 2", "row 7", "row 9"]
    for (_, colors), number in zip(rows, (0, 5, 10, 7, 9), strict=True):
        assert close(colors, [number])
    one = TarSource(tars=[str(tmp_path / "1.tar")])
    assert [caption for caption, _ in read(one, start=1)] == ["row 9"]


def test_tars_of_pictures_and_json(tmp_path: Path) -> None:
    files = {"0.jpg": plain(1, kind="JPEG"), "0.json": json.dumps({"long": "a cat", "width": 40}).encode()}
    files |= {"1.jpg": plain(2, kind="JPEG"), "1.json": b"{'long': 3}", "2.jpg": plain(), "2.json": b'{"short": "x"}'}
    rows = read(TarSource(tars=str(write_tar(tmp_path / "a.tar", files)), caption_key="long"))
    assert rows[0][0] == "a cat" and close(rows[0][1], [1])
    assert rows[1:] == [(f"a.tar:{i}", "the json file is no JSON with the field 'long'") for i in (1, 2)]


def test_rows_of_a_tar_that_can_not_be_used_say_why(tmp_path: Path) -> None:
    files = {
        **{"0.txt": b"no picture", "1.png": plain(), "2.png": plain(), "2.jpg": plain(), "2.txt": b"two pictures"},
        **{
            "3.png": BROKEN,
            "3.txt": b"broken",
            "4.png": plain(),
            "4.txt": b"\xff\xfe",
            "5.png": plain(),
            "5.txt": b" ",
        },
        **{"6.png": plain(), "6.txt": b"good"},
    }
    rows = read(TarSource(tars=str(write_tar(tmp_path / "a.tar", files))))
    assert [key for key, _ in rows] == [*(f"a.tar:{i}" for i in range(6)), "good"]
    told = ["no image", "no txt file among ['png']", "2 images", "image can not be decoded", "no UTF-8", "no text with"]
    for (_, reason), words in zip(rows, told, strict=False):
        assert words in reason


def test_a_tar_that_breaks_off_ends_in_one_row_that_says_so(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "a.tar", [0, 1, 2]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3000])
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    rows = read(TarSource(tars=str(tmp_path / "*.tar")))
    assert rows[0][0] == "row 0"
    assert [key for key, reason in rows if "the rest of the shard can not be read" in reason] == ["a.tar", "b.tar"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(plain(number))
    (folder / "bad.png").write_bytes(BROKEN)
    return folder


def test_instructions_with_several_references(tmp_path: Path, pictures: Path) -> None:
    rows = [
        {"instruction": "make it blue", "input_images": ["0.png"], "output_image": "1.png"},
        {"instruction": "join them", "input_images": ["2.png", "3.png"], "output_image": "4.png", "task": "compose"},
    ]
    source = InstructionSource(files=str(write_jsonl(tmp_path / "a.jsonl", rows)), root=str(pictures))
    first, second = read(source)
    assert first == ("make it blue", [color(1), color(0)])
    assert second == ("join them", [color(4), color(2), color(3)])
    assert read(source, start=1) == [second]


def test_instructions_that_can_not_be_used_say_why(tmp_path: Path, pictures: Path) -> None:
    good = {"instruction": "x", "input_images": ["0.png"], "output_image": "1.png"}
    cases: list[tuple[Any, str]] = [
        ("{no json", "the line is no JSON"),
        ([1], "the row is no JSON object but list"),
        ({"instruction": "x", "output_image": "1.png"}, "the field 'input_images' is missing or empty; there are"),
        (good | {"instruction": ""}, "the field 'instruction' is missing or empty"),
        (good | {"instruction": ["x"]}, "is no text with at least one word"),
        (good | {"input_images": [3]}, "must hold paths"),
        (good | {"input_images": ["none.png"]}, "reference 1 "),
        (good | {"output_image": "bad.png"}, "bad.png can not be decoded"),
        (good | {"input_images": ["0.png"] * 5}, "there are 5 reference images, more than 4"),
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [case for case, _ in cases] + [good])
    rows = read(InstructionSource(files=str(path), root=str(pictures)))
    assert rows.pop()[0] == "x"
    for number, ((key, reason), (_, told)) in enumerate(zip(rows, cases, strict=True), start=1):
        assert key == f"a.jsonl:{number}" and told in reason


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "lines.json"])
def test_sharegpt_rows_are_edits_where_they_have_an_input(tmp_path: Path, pictures: Path, name: str) -> None:
    rows = [
        {"input_prompt": "a dog", "output_image": "pictures/0.png"},
        {"input_prompt": "redden it", "input_image": "pictures/1.png", "output_image": "pictures/2.png"},
        {"input_prompt": "both", "input_image": ["pictures/3.png", "pictures/4.png"], "output_image": "pictures/5.png"},
    ]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        write_jsonl(path, rows)
    assert read(ShareGPTSource(files=str(path))) == [
        ("a dog", [color(0)]),
        ("redden it", [color(2), color(1)]),
        ("both", [color(5), color(3), color(4)]),
    ]


def test_the_datasets_library_streams_tars(tmp_path: Path) -> None:
    write_rows(tmp_path / "0.tar", [0, 1, 2], **{"0001__png": BROKEN})
    write_rows(tmp_path / "1.tar", [3, 4])
    files = [str(tmp_path / f"{i}.tar") for i in range(2)]
    source = DatasetSource(path="webdataset", data_files=files, caption="txt", image="png")
    assert source.shards() == ["0", "1"]
    rows = read(source)
    assert [caption for caption, _ in rows] == ["row 0", "webdataset:0:0001", "row 2", "row 3", "row 4"]
    assert "image can not be decoded" in rows[1][1] and rows[2][1] == [color(2)]
    assert [caption for caption, _ in read(source, start=1)][1:] == ["row 2", "row 4"]


def test_the_datasets_library_streams_json(tmp_path: Path, pictures: Path) -> None:
    rows = [{"say": {"long": f"edit {i}"}, "inputs": [f"{i}.png"] * i, "output": f"{i + 1}.png"} for i in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    arguments: dict[str, Any] = {"path": "json", "data_files": str(path), "image": "output", "root": str(pictures)}
    source = DatasetSource(caption="say.long", references="inputs", **arguments)
    assert read(source) == [(f"edit {i}", [color(i + 1), *[color(i)] * i]) for i in range(3)]
    wrong = read(DatasetSource(caption="say.short", **arguments))
    assert wrong[0] == ("json:0:0", "there is no column 'say.short' among ['inputs', 'output', 'say']")


def test_what_the_datasets_library_can_not_parse_ends_the_shard(tmp_path: Path) -> None:
    write_rows(tmp_path / "0.tar", [0, 1, 2, 3, 4, 5, 6, 7], **{"0009__png": plain(), "0009__txt": b"\xff\xff"})
    source = DatasetSource(path="webdataset", data_files=str(tmp_path / "0.tar"), caption="txt", image="png")
    *_, (_, reason) = read(source)
    assert "the rest of the shard can not be read: UnicodeDecodeError" in reason


def test_sources_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tars \(.*none-\*.tar\) matches no file"):
        TarSource(tars=str(tmp_path / "none-*.tar")).shards()
    with pytest.raises(ValueError, match=r"files \(\[\]\) names no file"):
        ShareGPTSource(files=[]).shards()
    with pytest.raises(ValueError, match=r"path \(DatasetSource\(json, .*\) can not be loaded"):
        DatasetSource(path="json", data_files=str(tmp_path / "a.jsonl"), caption="x", image="y").shards()


def test_limits_reach_the_references() -> None:
    row = RawRow("a", "x", plain(size=(64, 64)), (plain(size=(16, 16)),))
    assert decode(row, Limits(min_size=16)).references[0].size == (16, 16)
    with pytest.raises(Unreadable, match="reference 1 has 16 x 16 pixels"):
        decode(row)
    assert decode(RawRow("a", " x ", encoded(Image.new("L", (40, 40))))).caption == "x"
