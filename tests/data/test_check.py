"""`blip3o data check`: what it prints and writes, and that a bad source ends in code 2 with the list and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from blip3o.cli import main
from blip3o.images import read_settings
from tests.data.pictures import BROKEN, color, plain, write_jsonl, write_rows


class Result(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `blip3o data check` in `tmp_path` on a YAML with the section `data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(data: Any, *args: object) -> Result:
        if data is not None:
            (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"class_path": "none"}, "data": data}))
        try:
            code: object = main(["data", "check", "run.yaml", *map(str, args)])
        except SystemExit as error:
            code = error.code
        return Result(code, *capsys.readouterr())

    return run


def config(*sources: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    init_args = {"sources": list(sources), "image_size": 64, "token_image_size": 32, **arguments}
    return {"class_path": "blip3o.data.images.ImageDataModule", "init_args": init_args}


def source(name: str, weight: float = 1, limits: dict[str, Any] | None = None, **init_args: Any) -> dict[str, Any]:
    entry = {"source": {"class_path": f"blip3o.data.sources.{name}", "init_args": init_args}, "weight": weight}
    return entry | ({} if limits is None else {"limits": limits})


def write_edits(folder: Path) -> None:
    for number in (100, 200):
        (folder / f"{number}.png").write_bytes(plain(number, (64, 64)))
    row = {"instruction": "make it lighter", "input_images": ["100.png"], "output_image": "200.png"}
    write_jsonl(folder / "edits.jsonl", [row] * 3)


def test_good_sources_are_told_of_and_shown(check: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.tar", range(30), **{"0003__png": BROKEN})
    write_edits(tmp_path)
    data = config(
        source("TarSource", 10, tars="*.tar"),
        source("InstructionSource", 1.5, files="edits.jsonl"),
        val_sources=[source("TarSource", tars="a.tar")],
        num_val=2,
    )
    result = check(data, "--output", "sheet.png", "--num", 40)
    assert (result.code, result.err) == (0, "")
    lines = {line.split("│")[1].strip(): line for line in result.out.splitlines() if line.startswith("│")}
    cells = {name: [cell.strip() for cell in line.split("│")[2:-1]] for name, line in lines.items()}
    assert cells["TarSource(*.tar)"] == ["10", "30", "1", "none", "32 / 32 / 32", "2 / 2 / 2"]
    assert cells["InstructionSource(edits.jsonl)"] == ["1.5", "3", "0", "3 with 1", "64 / 64 / 64", "3 / 3 / 3"]
    assert cells["validation: TarSource(a.tar)"] == ["1", "2", "0", "none", "32 / 32 / 32", "2 / 2 / 2"]
    assert "a.tar:0003: image can not be decoded" in result.out and "written to sheet.png" in result.out
    sheet = Image.open(tmp_path / "sheet.png")
    assert read_settings(tmp_path / "sheet.png")["config"] == "run.yaml"
    # The reference of an edit stands to the left of its target.
    pixels = np.asarray(sheet.convert("RGB")).reshape(-1, sheet.width, 3)
    row = next(line for line in pixels if (line == color(100)).all(-1).sum() >= 128)
    reference = np.flatnonzero((row == color(100)).all(-1))[0]
    assert (row[reference + 128] == color(200)).all()


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "too many failures": (
        source("TarSource", tars="bad.tar", limits={"max_failures": 0.1}),
        "2 of 10 rows can not be used, more than max_failures (0.1)",
    ),
    "no usable row": (source("TarSource", tars="bad.tar", limits={"min_size": 999}), "none of 10 rows can be used"),
    "no file": (source("TarSource", tars="none.tar"), "tars (none.tar) matches no file"),
    "no such field": (source("InstructionSource", files="edits.jsonl", instruction="x"), "none of 3 rows can be used"),
    "no such class": (source("ZipSource", tars="bad.tar"), "ZipSource"),
    "no such argument": (source("TarSource", tar="bad.tar"), "tar"),
    "weight of zero": (source("TarSource", 0, tars="bad.tar"), "weight (0.0) of TarSource(bad.tar) must be above 0"),
    "limits out of range": (source("TarSource", tars="bad.tar", limits={"min_size": 0}), "min_size (0)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_source_ends_in_code_2_and_no_file(check: Any, tmp_path: Path, fault: str) -> None:
    write_rows(tmp_path / "bad.tar", range(10), **{"0002__png": BROKEN, "0007__txt": b""})
    write_edits(tmp_path)
    before = {path.name for path in tmp_path.iterdir()} | {"run.yaml"}
    entry, told = FAULTS[fault]
    result = check(config(source("InstructionSource", files="edits.jsonl"), entry), "--output", "sheet.png")
    assert result.code == 2 and told in result.err and result.err.startswith("blip3o data: ")
    assert "Traceback" not in result.err
    if fault == "too many failures":
        assert "bad.tar:0002: image can not be decoded" in result.err and "bad.tar:0007: the caption" in result.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_shapes_world_and_prompts_can_be_looked_at(check: Any, tmp_path: Path) -> None:
    shapes = {"class_path": "blip3o.data.shapes.ShapesDataModule", "init_args": {"world": "shapes-mini"}}
    result = check(shapes, "--output", "sheet.png", "--num", 20)
    assert result.code == 0 and "ShapesDataModule" in result.out and (tmp_path / "sheet.png").is_file()
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\n")
    prompts = {"class_path": "blip3o.data.prompts.PromptDataModule", "init_args": {"file": "prompts.txt"}}
    assert check(prompts, "--num", 2).code == 0
    result = check(prompts, "--output", "other.png")
    assert result.code == 2 and "holds no pictures; leave it out" in result.err
    assert not (tmp_path / "other.png").exists()


def test_wrong_usage(check: Any, tmp_path: Path) -> None:
    assert "config (run.yaml) can not be read" in check(None).err
    (tmp_path / "run.yaml").write_text("model: 3\n")
    assert "has no section 'data'" in check(None).err
    write_rows(tmp_path / "a.tar", [0])
    good = config(source("TarSource", tars="a.tar"))
    assert "num (0) must be at least 1" in check(good, "--num", 0).err
    result = check(good, "--output", "sheet.jpg")
    assert result.code == 2 and "output (sheet.jpg) must end in .png" in result.err and result.out == ""
