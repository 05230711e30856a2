"""The generate stage: its files, that a stopped run goes on with the same pictures, and that runs never mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.evaluation.gedit import GROUPS, GEdit
from blip3o.evaluation.generating import generate_edits
from blip3o.evaluation.imgedit import ImgEdit
from blip3o.images import read_settings
from tests.evaluation.benchmarks import editor, gedit_folder, imgedit_folder
from tests.test_editing import pipeline


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def benchmark(tmp_path: Path) -> ImgEdit:
    return ImgEdit(imgedit_folder(tmp_path / "bench", ["add", "style", "remove", "action", "adjust"]))


def test_each_item_gets_the_picture_that_the_pipeline_makes_of_it(benchmark: ImgEdit, tmp_path: Path) -> None:
    made = generate_edits(editor(), benchmark, tmp_path / "out", model_name="tiny", seed=3, batch_size=2, top_p=0.9)
    assert made == 5
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["generation.json", *(f"images/{key}.png" for key in range(100, 105))]
    item = benchmark.items[2]
    generator = torch.Generator().manual_seed(3_000_002)
    alone = editor()(item.instruction, image=item.picture(), generator=generator, top_p=0.9).images[0]
    written = pixels(tmp_path / "out/images/102.png")
    assert np.abs(written - np.asarray(alone)).max() <= 1
    assert np.abs(written - pixels(tmp_path / "out/images/101.png")).max() > 8
    record = json.loads((tmp_path / "out/generation.json").read_text())
    assert record == {
        **{"benchmark": "imgedit", "model": "tiny", "seed": 3, "prompt_rewriting": False},
        "settings": {
            **{"num_inference_steps": 2, "guidance_scale": 2.0, "token_guidance_scale": 1.0},
            **{"temperature": 1.0, "top_k": 0, "top_p": 0.9, "decoding": "sequential", "jacobi_window": 16},
        },
    }
    told = {"key": "102", "index": 2, "prompt": item.instruction}
    assert read_settings(tmp_path / "out/images/102.png") == {**record, **told}


def test_a_stopped_run_goes_on_and_leaves_what_is_finished(
    benchmark: ImgEdit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_edits(editor(), benchmark, tmp_path / "whole", batch_size=5)
    calls: list[list[str]] = []

    class Stopping:
        defaults, model = editor().defaults, editor().model

        def __call__(self, prompts: list[str], **arguments: Any) -> Any:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(prompts)
            return editor()(prompts, **arguments)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        generate_edits(Stopping(), benchmark, out, batch_size=2)  # type: ignore[arg-type]
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert sorted(finished) == ["100.png", "101.png", "102.png", "103.png"]
    (out / "images/101.png").unlink()
    del finished["101.png"]
    assert generate_edits(editor(), benchmark, out, batch_size=1) == 2
    assert {name: (out / "images" / name).stat().st_mtime_ns for name in finished} == finished
    for key in range(100, 105):
        assert np.abs(pixels(out / f"images/{key}.png") - pixels(tmp_path / f"whole/images/{key}.png")).max() <= 1
    assert generate_edits(editor(), benchmark, out) == 0


def test_a_part_of_the_items_can_be_made_first(benchmark: ImgEdit, tmp_path: Path) -> None:
    assert generate_edits(editor(), benchmark, tmp_path / "out", num_items=2) == 2
    assert generate_edits(editor(), benchmark, tmp_path / "out") == 3


def test_gedit_s_layout_is_that_of_its_own_evaluation(tmp_path: Path) -> None:
    benchmark = GEdit(gedit_folder(tmp_path / "bench"))
    generate_edits(editor(), benchmark, tmp_path / "out", num_items=3)
    for index, group in enumerate(GROUPS[:3]):
        assert (tmp_path / f"out/fullset/{group}/en/key{index}.png").is_file()


def test_pictures_made_otherwise_are_never_taken_over(benchmark: ImgEdit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate_edits(editor(), benchmark, out, model_name="a", num_items=1)
    for arguments, told in (
        ({"seed": 1}, "holds pictures of seed 0, not of seed 1; name another folder"),
        ({"model_name": "b"}, 'holds pictures of model "a", not of model "b"'),
        ({"num_inference_steps": 3}, "holds pictures of settings"),
    ):
        given: dict[str, Any] = {"model_name": "a", **arguments}
        with pytest.raises(ValueError, match=told):
            generate_edits(editor(), benchmark, out, **given)
    path = tmp_path / "bench/basic_edit.json"
    path.write_text(path.read_text().replace("a red circle", "a blue circle"))
    with pytest.raises(ValueError, match=r"100.png was not made for .* key '100'; name another folder"):
        generate_edits(editor(), ImgEdit(tmp_path / "bench"), out, model_name="a")
    (out / "generation.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation.json can not be read"):
        generate_edits(editor(), benchmark, out, model_name="a")
    (out / "generation.json").unlink()
    with pytest.raises(ValueError, match=r"holds 1 pictures, such as images/100.png, and no generation.json"):
        generate_edits(editor(), benchmark, out, model_name="a")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seed": -1}, r"seed \(-1\) must lie in 0.."),
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"num_items": 0}, r"num_items \(0\) must be at least 1"),
        ({"num_inference_steps": 0}, r"num_inference_steps \(0\)"),
    ],
)
def test_values_out_of_range_leave_nothing_behind(
    benchmark: ImgEdit, tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        generate_edits(editor(), benchmark, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folder_s_place_and_a_picture_that_is_none(benchmark: ImgEdit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir \(.*file\) is a file"):
        generate_edits(editor(), benchmark, tmp_path / "file")
    (tmp_path / "bench/pictures/004.jpg").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"key '104': the picture .*004.jpg is no picture"):
        generate_edits(editor(), benchmark, tmp_path / "out", batch_size=4)
    assert len(list((tmp_path / "out/images").iterdir())) == 4


def test_a_batch_of_pictures_of_several_proportions_is_edited_by_its_sizes(tmp_path: Path) -> None:
    """One over SANA, which keeps proportions; each edit is what it would be alone."""
    benchmark = ImgEdit(imgedit_folder(tmp_path / "bench", ["add", "style", "remove"]))
    for number, size in enumerate([(48, 40), (64, 32), (48, 40)]):
        path = benchmark.items[number].source()
        assert isinstance(path, Path)
        Image.open(path).resize(size).save(path)
    made = generate_edits(pipeline("latents"), benchmark, tmp_path / "out", batch_size=3)
    assert made == 3
    for item, size in zip(benchmark.items, [(36, 30), (46, 22), (36, 30)], strict=True):
        generator = [torch.Generator().manual_seed(item.index)]
        alone = pipeline("latents")(item.instruction, image=item.picture(), generator=generator).images[0]
        written = pixels(tmp_path / "out" / item.output)
        assert alone.size == size and np.abs(written - np.asarray(alone)).max() <= 1
