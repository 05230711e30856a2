"""The shapes benchmark: its files, its scores, and that neither depends on the batch size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.evaluation.shapes import evaluate, print_summary
from blip3o.pipeline import GenerationDefaults
from blip3o.shapes import SHAPES, SHAPES_MINI, evaluation_captions, metadata, render, scene_for_caption, summary
from blip3o.shapes.text import TEXT, TextScene, parse_text_caption, render_text


class HalfRight:
    """A pipeline that draws the caption's scene, or nothing, by the toss of each picture's own generator."""

    defaults = GenerationDefaults()

    def __call__(self, captions: list[str], *, generator: list[torch.Generator], **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(images=[self._draw(c, g) for c, g in zip(captions, generator, strict=True)])

    def _draw(self, caption: str, generator: torch.Generator) -> Image.Image:
        if torch.rand(1, generator=generator) < 0.5:
            return Image.fromarray(np.full((64, 64, 3), 255, dtype=np.uint8))
        seed = int(torch.randint(1 << 30, (1,), generator=generator))
        return Image.fromarray(render(scene_for_caption(SHAPES, caption, np.random.default_rng(seed)), SHAPES))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_score_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    folders = {size: tmp_path / str(size) for size in (1, 7, 30)}
    reports = {
        size: evaluate(HalfRight(), folder, num_captions=30, seed=3, batch_size=size)  # type: ignore[arg-type]
        for size, folder in folders.items()
    }
    assert reports[1] == reports[7] == reports[30]
    assert read_rows(folders[1]) == read_rows(folders[7]) == read_rows(folders[30])
    assert 0.2 < reports[1]["overall"]["mean"] < 0.8
    assert reports[1] != evaluate(HalfRight(), tmp_path / "other", num_captions=30, seed=4)  # type: ignore[arg-type]


class HalfReadable(HalfRight):
    """As `HalfRight`, of words."""

    def _draw(self, caption: str, generator: torch.Generator) -> Image.Image:
        if torch.rand(1, generator=generator) < 0.5:
            return Image.fromarray(np.full((64, 64, 3), 255, dtype=np.uint8))
        spec = parse_text_caption(caption, TEXT)
        scene = TextScene("black", spec.word, spec.color, 2.0, 20.0, TEXT.heights[0], caption)
        return Image.fromarray(render_text(scene, TEXT))


def test_words_are_scored_as_scenes_are(tmp_path: Path) -> None:
    report = evaluate(HalfReadable(), tmp_path, num_captions=30, seed=3, world="text")  # type: ignore[arg-type]
    rows = read_rows(tmp_path)
    assert list(report["tags"]) == ["text"] and report["judge"].startswith("blip3o.shapes.verify_text ")
    assert 0 < report["overall"]["mean"] == sum(row["correct"] for row in rows) / 30 < 1
    for row in rows:
        word, details = json.loads(row["metadata"])["word"], json.loads(row["details"])
        assert (details["word"] == word) == row["correct"] and (details["x"] is None) == (not row["correct"])


def test_a_real_models_pictures_do_not_depend_on_the_batch_size(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    for size in (2, 5):
        evaluate(tiny_pipe, tmp_path / str(size), num_captions=5, batch_size=size, world="shapes-mini")
    for index in range(5):
        name = f"{index:05d}/samples/0000.png"
        one, other = (np.asarray(Image.open(tmp_path / size / name)).astype(int) for size in ("2", "5"))
        assert np.abs(one - other).max() <= 1


def test_the_files_are_genevals_and_agree_with_one_another(tmp_path: Path) -> None:
    report = evaluate(HalfRight(), tmp_path, model_name="half", num_captions=8, seed=1, guidance_scale=3.0)  # type: ignore[arg-type]
    folders = [f"{index:05d}" for index in range(8)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {"results.jsonl", "summary.json"}
    rows = read_rows(tmp_path)
    assert [row["filename"] for row in rows] == [f"{name}/samples/0000.png" for name in folders]
    for caption, name, row in zip(evaluation_captions(SHAPES, 8, 1), folders, rows, strict=True):
        assert row["prompt"] == caption
        assert json.loads((tmp_path / name / "metadata.jsonl").read_text()) == metadata(caption, SHAPES)
        assert Image.open(tmp_path / row["filename"]).size == (64, 64)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(report))
    assert report["overall"] == summary(rows)["overall"]
    assert (report["model"], report["seed"], report["prompt_rewriting"]) == ("half", 1, False)
    assert report["judge"].startswith("blip3o.shapes.verify ")
    assert report["settings"] == {**GenerationDefaults().given(), "guidance_scale": 3.0}


def test_the_summary_is_printed_with_its_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(HalfRight(), tmp_path, num_captions=6)  # type: ignore[arg-type]
    print_summary(report, tmp_path)
    out = capsys.readouterr().out
    for words in (*report["tags"], "overall", "95 % interval", str(tmp_path)):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_captions": 0}, "num_captions (0) must be at least 1"),
        ({"batch_size": 0}, "batch_size (0) must be at least 1"),
        ({"seed": -1}, "seed (-1) must lie in 0.."),
        ({"world": "cities"}, "'cities'"),
        (
            {"world": replace(SHAPES_MINI, canvas=64)},
            "world (of your own) has pictures of 64 pixels a side, but the model makes 32; choose",
        ),
        ({"guidance_scale": -1.0}, "guidance_scale (-1.0)"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_files(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    values = {"num_captions": 2, "world": "shapes-mini", **arguments}
    with pytest.raises(ValueError) as error:
        evaluate(tiny_pipe, tmp_path / "out", **values)
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_earlier_evaluation_is_replaced_whole_and_kept_where_the_arguments_are_bad(tmp_path: Path) -> None:
    evaluate(HalfRight(), tmp_path, num_captions=8)  # type: ignore[arg-type]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="num_captions"):
        evaluate(HalfRight(), tmp_path, num_captions=0)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before
    evaluate(HalfRight(), tmp_path, num_captions=3)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000", "00001", "00002"]


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt, which is no evaluation's"):
        evaluate(HalfRight(), tmp_path, num_captions=3)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_numbered_folders_of_something_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000/face.png").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 00000, which is no evaluation's"):
        evaluate(HalfRight(), tmp_path, num_captions=3)  # type: ignore[arg-type]
    assert (tmp_path / "00000/face.png").read_text() == "mine"


def test_an_output_folder_that_is_a_file_is_refused(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        evaluate(tiny_pipe, path, num_captions=1, world="shapes-mini")
    assert path.read_text() == "mine"
