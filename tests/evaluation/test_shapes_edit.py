"""The editing benchmark: its files, its scores, that neither depends on the batch size, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.evaluation.shapes_edit import check_takes_edits, evaluate_edits, print_edit_summary
from blip3o.pipeline import GenerationDefaults
from blip3o.shapes import ALL_KINDS, EDIT_KINDS, SHAPES_MINI, edit_summary, evaluation_edits, read_edit, render
from tests.tiny_edits import Oracle, tiny_edit_model, tiny_edit_pipe


def oracle(num_edits: int, seed: int = 0, kinds: Any = None, share: float = 0.5) -> Oracle:
    return Oracle(evaluation_edits(SHAPES_MINI, num_edits, seed, kinds), SHAPES_MINI, share)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(pipe: Blip3oPipeline, folder: Path, num_edits: int, **arguments: Any) -> dict[str, Any]:
    return evaluate_edits(pipe, folder, num_edits=num_edits, **{"world": "shapes-mini", **arguments})


def test_the_score_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    pipe = oracle(30, 3, ALL_KINDS)
    given: dict[str, Any] = {"seed": 3, "kinds": ALL_KINDS}
    reports = {size: run(pipe, tmp_path / str(size), 30, batch_size=size, **given) for size in (1, 7, 30)}
    assert reports[1] == reports[7] == reports[30]
    assert read_rows(tmp_path / "1") == read_rows(tmp_path / "7") == read_rows(tmp_path / "30")
    assert 0.2 < reports[1]["success"]["mean"] < 0.8
    assert reports[1]["kinds"]["reconstruct"]["success"]["mean"] == 1
    assert (reports[1]["consistency"]["mean"], reports[1]["mae"]["mean"]) == (1, 0)


def test_a_real_models_pictures_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    pipe = tiny_edit_pipe()
    reports = [run(pipe, tmp_path / str(size), 6, batch_size=size, kinds=["add", "combine"]) for size in (2, 5)]
    assert reports[0]["mae"]["mean"] > 0
    for index in range(6):
        name = f"{index:05d}/samples/0000.png"
        one, other = (np.asarray(Image.open(tmp_path / size / name)).astype(int) for size in ("2", "5"))
        assert np.abs(one - other).max() <= 1


def test_the_files_agree_with_one_another(tmp_path: Path) -> None:
    report = run(oracle(8, 1), tmp_path, 8, seed=1, model_name="half", guidance_scale=3.0)
    folders = [f"{index:05d}" for index in range(8)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "results.jsonl",
        "summary.json",
        "sheet.png",
    }
    rows = read_rows(tmp_path)
    assert [row["filename"] for row in rows] == [f"{name}/samples/0000.png" for name in folders]
    for edit, name, row in zip(evaluation_edits(SHAPES_MINI, 8, 1), folders, rows, strict=True):
        assert (row["prompt"], row["tag"]) == (edit.instruction, edit.kind)
        record = json.loads((tmp_path / name / "metadata.jsonl").read_text())
        assert read_edit(record) == edit == read_edit(json.loads(row["metadata"]))
        source, result, expected = (
            np.asarray(Image.open(tmp_path / name / file))
            for file in ("references/0.png", "samples/0000.png", "expected.png")
        )
        assert np.array_equal(source, render(edit.source, SHAPES_MINI))
        assert np.array_equal(expected, render(edit.target, SHAPES_MINI))
        assert np.array_equal(result, expected if row["correct"] else source)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(report))
    assert report["success"] == edit_summary(rows)["success"] and set(report["kinds"]) == set(EDIT_KINDS)
    assert (report["benchmark"], report["model"], report["seed"]) == ("shapes-edit", "half", 1)
    assert report["judge"].startswith("blip3o.shapes.verify_edits ") and report["prompt_rewriting"] is False
    assert report["settings"] == {**GenerationDefaults().given(), "guidance_scale": 3.0}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 3 * 32 and sheet.height > 8 * 3 * 32


def test_the_summary_is_printed_with_its_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_edit_summary(run(oracle(6, share=1.0), tmp_path, 6), tmp_path)
    out = capsys.readouterr().out
    for words in (*EDIT_KINDS, "overall", "consistency", "1.000 (0.", "0.0000", str(tmp_path)):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_edits": 0}, "num_edits (0) must be at least 1"),
        ({"batch_size": 0}, "batch_size (0) must be at least 1"),
        ({"seed": -1}, "seed (-1) must lie in 0.."),
        ({"world": "cities"}, "'cities'"),
        ({"kinds": ["move"]}, "kind ('move') is no kind of edit"),
        ({"guidance_scale": -1.0}, "guidance_scale (-1.0)"),
        ({"world": "shapes"}, "lacks ['"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_files(tmp_path: Path, arguments: dict[str, Any], told: str) -> None:
    values = {"num_edits": 2, **arguments}
    with pytest.raises(ValueError) as error:
        run(tiny_edit_pipe(), tmp_path / "out", **values)
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_can_not_take_references_is_refused_with_the_remedy(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        run(tiny_pipe, tmp_path / "out", 5)
    assert "its text tokenizer lacks ['Please', 'edit'" in str(error.value)
    assert "name a model that was trained on edits (blip3o.data.editing.ShapesEditDataModule)" in str(error.value)
    short = tiny_edit_model(max_position_embeddings=45)
    check_takes_edits(short, evaluation_edits(SHAPES_MINI, 5, 0))
    with pytest.raises(ValueError, match=r"no room for 2 reference\(s\): .* positions, and its AR model has 45"):
        check_takes_edits(short, evaluation_edits(SHAPES_MINI, 5, 0, ["combine"]))
    assert not (tmp_path / "out").exists()


def test_an_earlier_evaluation_is_replaced_whole_and_nothing_else(tmp_path: Path) -> None:
    run(oracle(4, kinds=["combine"]), tmp_path, 4, kinds=["combine"])
    run(oracle(2), tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000", "00001"]
    assert not (tmp_path / "00000/references/1.png").exists()
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt, which is no evaluation's"):
        run(oracle(2), tmp_path, 2)
    assert (tmp_path / "00001").is_dir()
