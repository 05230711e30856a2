"""Bulk generation: the files of a run are the same however often it was stopped, and however its stages overlapped."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from blip3o import Blip3oPipeline
from blip3o.ablation.files import locked
from blip3o.bulk import Prompt, generate_many
from blip3o.bulk.folder import BulkFolder
from blip3o.bulk.overlap import two_stages
from blip3o.bulk.progress import progress
from blip3o.images import read_settings

PROMPTS: list[str | Prompt] = [
    "a circle",
    Prompt("two red squares left of a green triangle", seed=77, name="deep/two", fields={"tag": "position"}),
    "a blue square",
    "a red circle above a green square",
    "two triangles",
]
GIVEN: dict[str, Any] = {"model_name": "tiny", "seed": 3, "batch_size": 2, "num_inference_steps": 1}
FILES = ["00000.png", "deep/two.png", "00002.png", "00003.png", "00004.png"]


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tiny_pipe: Blip3oPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("bulk") / "whole"
    assert generate_many(tiny_pipe, PROMPTS, folder, overlap=False, **GIVEN) == len(PROMPTS)
    return contents(folder)


def test_the_files_and_what_they_tell(whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    assert set(whole) == {*FILES, "images.jsonl", "generation.json", ".lock"}
    lines = [json.loads(line) for line in whole["images.jsonl"].splitlines()]
    assert [line["file"] for line in lines] == FILES
    assert [line["seed"] for line in lines] == [3, 77, 5, 6, 7]
    settings = {"model": "tiny", **tiny_pipe.defaults.given(), "num_inference_steps": 1}
    assert lines[1] == {
        **{"tag": "position", "file": "deep/two.png", "prompt": "two red squares left of a green triangle"},
        **{"seed": 77, "settings": settings},
    }
    path = tmp_path / "one.png"
    path.write_bytes(whole["00002.png"])
    stored = read_settings(path)
    assert stored == {"prompt": "a blue square", "seed": 5, **settings}


def test_a_batch_has_the_pictures_of_a_call(whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    images = tiny_pipe([PROMPTS[2], PROMPTS[3]], generator=generators, num_inference_steps=1).images  # type: ignore[list-item]
    for image, name in zip(images, FILES[2:4], strict=True):
        (tmp_path / "one.png").write_bytes(whole[name])
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "one.png")))


def test_overlapping_stages_change_nothing(whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    generate_many(tiny_pipe, PROMPTS, tmp_path, overlap=True, **GIVEN)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_run_that_died_goes_on_to_the_same_files(
    whole: dict[str, bytes],
    tiny_pipe: Blip3oPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overlap: bool,
    saved: int,
) -> None:
    """It dies without a chance to clean up: in the midst of a batch's files, and of a line of the manifest."""
    save = BulkFolder.save
    calls: list[int] = []

    def dying(self: BulkFolder, made: Any) -> None:
        if len(calls) < saved:
            calls.append(0)
            save(self, made)
            return
        save(self, made[:1])
        with (self.root / "images.jsonl").open("a") as file:
            file.write('{"file": "000')
        unfinished = self.root / made[-1][0].file
        unfinished.parent.mkdir(exist_ok=True)
        unfinished.with_name(f".{unfinished.name}.{os.getpid()}.part").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BulkFolder, "save", dying)
        patch.setattr(BulkFolder, "_write_manifest", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            generate_many(tiny_pipe, PROMPTS, tmp_path, overlap=overlap, **GIVEN)
    before = contents(tmp_path)
    assert any(name.endswith(".part") for name in before)
    assert all(before[name] == whole[name] for name in FILES if name in before)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES if name in before}
    assert generate_many(tiny_pipe, PROMPTS, tmp_path, overlap=overlap, **GIVEN) == len(PROMPTS) - len(stamps)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in stamps} == stamps, "finished files stay untouched"
    after = contents(tmp_path)
    assert after == whole


def test_files_that_went_missing_are_made_again_and_a_whole_folder_is_left_alone(
    whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    for name, content in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / FILES[1]).unlink()
    (tmp_path / "images.jsonl").unlink()
    assert generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN) == 1
    assert contents(tmp_path) == whole
    assert generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN) == 0
    assert contents(tmp_path) == whole


def test_an_error_midway_leaves_whole_files_and_a_whole_manifest(
    whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = tiny_pipe.model.diffusion.decode, []

    def failing(latents: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return decode(latents)

    monkeypatch.setattr(tiny_pipe.model.diffusion, "decode", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN)
    left = contents(tmp_path)
    assert {name for name in left if name.endswith(".png")} == set(FILES[:4])
    assert left["images.jsonl"].splitlines() == whole["images.jsonl"].splitlines()[:4]
    assert all(left[name] == whole[name] for name in FILES[:4])


CHANGED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 4}, "pictures of seed 3, prompts (sha256)"),
    ({"batch_size": 3}, "of batch_size 2, not of batch_size 3; name another folder, or go on as it was begun"),
    ({"model_name": "other"}, 'of model "tiny", not of model "other"'),
    ({"guidance_scale": 3.0}, "of guidance_scale 2.0, not of guidance_scale 3.0"),
    ({"guidance_interval": (0.2, 0.9)}, "of guidance_interval null, not of guidance_interval [0.2, 0.9]"),
    ({"num_images": 2}, "num_images 1"),
]


@pytest.mark.parametrize(("change", "told"), CHANGED, ids=[str(change) for change, _ in CHANGED])
def test_a_folder_of_other_settings_is_refused(
    whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    (tmp_path / "generation.json").write_bytes(whole["generation.json"])
    with pytest.raises(ValueError) as error:
        generate_many(tiny_pipe, PROMPTS, tmp_path, **(GIVEN | change))
    assert told in str(error.value)
    assert set(contents(tmp_path)) == {"generation.json"}


def test_a_folder_of_other_prompts_or_pictures_is_refused(
    whole: dict[str, bytes], tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    (tmp_path / "generation.json").write_bytes(whole["generation.json"])
    with pytest.raises(ValueError, match=r"prompts \(num_pictures\) 5, .* not of prompts \(num_pictures\) 4"):
        generate_many(tiny_pipe, PROMPTS[:-1], tmp_path, **GIVEN)
    (tmp_path / "00003.png").write_bytes(whole["00002.png"])
    with pytest.raises(ValueError, match=r"00003.png was not made by this run; name another folder, or move the file"):
        generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN)
    (tmp_path / "generation.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation.json can not be read"):
        generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN)


def test_a_folder_that_another_process_writes_to_is_refused(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock", wait=False),
        pytest.raises(ValueError, match="is written to by another process; wait for it"),
    ):
        generate_many(tiny_pipe, PROMPTS, tmp_path, **GIVEN)


def test_a_link_out_of_the_folder_is_refused(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds a link, .*deep, that leaves it"):
        generate_many(tiny_pipe, PROMPTS, tmp_path / "out", **GIVEN)


REFUSED: list[tuple[list[str | Prompt], dict[str, Any], str]] = [
    ([], {}, r"prompts \(\[\]\) must hold at least one"),
    (["a circle", " "], {}, "prompts: number 1 is empty, or its prompt is"),
    (
        ["a circle", Prompt("a pink circle", place="line 9")],
        {},
        r"line 9 holds words .* not know: \['pink'",
    ),
    (["a circle", "a circle and " * 40], {}, "number 1 has 1.. tokens, more than the 80 that the model's context has"),
    (["a circle"], {"batch_size": 0}, r"batch_size \(0\)"),
    (["a circle"], {"num_images": 1.5}, r"num_images \(1.5\)"),
    (["a circle"], {"guidance_scale": -1}, r"guidance_scale \(-1\)"),
    (["a circle"], {"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
    (["a circle"], {"step_cache": 0.1}, r"step_cache \(0.1\) needs a denoiser with blocks"),
    (["a circle"], {"image_guidance_scale": 2.0}, "image_guidance_scale is about edits"),
]


@pytest.mark.parametrize(("prompts", "given", "told"), REFUSED, ids=[told for *_, told in REFUSED])
def test_what_can_not_be_made_is_refused_before_anything_is(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, prompts: list[str | Prompt], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        generate_many(tiny_pipe, prompts, tmp_path / "out", **(GIVEN | given))
    assert not (tmp_path / "out").exists()


def test_the_stages_of_two_batches_run_side_by_side() -> None:
    """The first stage of batch 1 waits for the second of batch 0 to have begun, which no other order allows."""
    begun, written = threading.Event(), threading.Event()

    def first(batch: int) -> int:
        if batch == 1:
            assert begun.wait(10), "rendering of batch 0 has not begun"
            written.set()
        return batch

    def second(batch: int, half: int) -> int:
        if batch == 0:
            begun.set()
            assert written.wait(10), "batch 1 was not written meanwhile"
        return 10 * half

    made = two_stages(range(3), first, second, device=torch.device("cpu"), overlap=True)
    assert list(made) == [(0, 0), (1, 10), (2, 20)]


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_stage_raises_arrives(overlap: bool) -> None:
    def second(batch: int, half: Callable[..., Any]) -> int:
        raise RuntimeError(f"batch {batch}")

    stages = two_stages(range(3), lambda batch: print, second, device=torch.device("cpu"), overlap=overlap)
    with pytest.raises(RuntimeError, match="batch 0"):
        list(stages)


def test_the_line_tells_number_speed_and_time_left(tmp_path: Path) -> None:
    path = tmp_path / "shown"
    with path.open("w") as file:
        console = Console(file=file, force_terminal=True, width=100)
        with progress(4, console) as advance:
            for _ in range(4):
                advance(1)
    shown = path.read_text()
    assert "4/4" in shown and "images/s" in shown and "0:00:00" in shown
