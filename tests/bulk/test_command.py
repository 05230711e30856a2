"""`blip3o generate --prompts`: files, refusals, and a process that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip3o.cli import main

GIVEN = ("--output_dir", "out", "--num_inference_steps", "1", "--batch_size", "2", "--seed", "5")


def run(*args: object) -> int:
    return main(["generate", *map(str, args)])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": "a circle"}, {"prompt": "a square", "name": "b"}, {"prompt": "a red circle"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_file_of_prompts_becomes_a_folder(
    tiny_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("--prompts", "p.jsonl", *GIVEN, "--model", tiny_folder, "--guidance_interval", "0.2", "0.9")
    assert run(*call) == 0
    assert capsys.readouterr().out == "3 images made in out\n"
    lines = [json.loads(line) for line in (folder / "out/images.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["00000.png", "b.png", "00002.png"]
    assert lines[0]["settings"]["guidance_interval"] == [0.2, 0.9] and lines[0]["seed"] == 5
    (folder / "out/b.png").unlink()
    assert run(*call) == 0
    assert capsys.readouterr().out == "1 images made in out, 2 were there\n"
    assert run(*call, "--guidance_scale", 1) == 2
    assert "of guidance_scale 2.0, not of guidance_scale 1.0" in capsys.readouterr().err


WRONG: list[tuple[list[object], str]] = [
    ([], "prompt is missing; give one, or --prompts FILE with --output_dir DIR"),
    (["a circle", "--output_dir", "out"], "output_dir (out) goes with --prompts"),
    (["a circle", "--batch_size", 3], "batch_size (3) goes with --prompts"),
    (["a circle", "--prompts", "p.jsonl", "--output_dir", "out"], "prompt (a circle) does not go with --prompts"),
    (["--prompts", "p.jsonl", "--output", "a.png"], "output (a.png) does not go with --prompts"),
    (["--prompts", "p.jsonl"], "output_dir is missing"),
    (["--prompts", "none.txt", "--output_dir", "out"], "prompts (none.txt) can not be read"),
    (["--prompts", "p.jsonl", "--output_dir", "p.jsonl"], "output_dir (p.jsonl) is a file"),
    (["--prompts", "p.jsonl", "--output_dir", "out", "--batch_size", 0], "batch_size (0) must be a whole number"),
    (["--prompts", "p.jsonl", "--output_dir", "out", "--step_cache", 0.1], "step_cache (0.1) needs a denoiser with"),
    (["a circle", "--guidance_interval", 0.9, 0.2], "guidance_interval ((0.9, 0.2)) must hold 0 <= low < high <= 1"),
]


@pytest.mark.parametrize(("args", "told"), WRONG, ids=[told for _, told in WRONG])
def test_wrong_usage(
    tiny_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str], args: list[object], told: str
) -> None:
    assert run(*args, "--model", tiny_folder) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["p.jsonl"]


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_files(tiny_folder: Path, folder: Path) -> None:
    (folder / "many.txt").write_text("a circle\na red square left of a circle\ntwo squares\n" * 40)

    def started(out: str) -> subprocess.Popen[bytes]:
        words = ["-m", "blip3o.cli", "generate", "--prompts", "many.txt", *GIVEN, "--model", str(tiny_folder)]
        return subprocess.Popen([sys.executable, *words, "--output_dir", out, "--num_inference_steps", "8"])

    def contents(out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / out).iterdir()}

    assert started("whole").wait() == 0
    for count in (5, 40, 80):
        process = started("killed")
        while len(list((folder / "killed").glob("*.png"))) < count:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(list((folder / "killed").glob("*.png"))) < 120
    assert started("killed").wait() == 0
    assert contents("killed") == contents("whole")
