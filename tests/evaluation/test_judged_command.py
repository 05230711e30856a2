"""`blip3o evaluate imgedit` and `gedit`: from pictures to scores, in one go or a stage at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from blip3o.cli import main
from blip3o.evaluation.gedit import GROUPS
from blip3o.evaluation.judges import TransformersJudge
from blip3o.evaluation.judges.choice import choose_judge
from tests.evaluation.benchmarks import editor, gedit_fields, gedit_folder, imgedit_folder, rows_of, scores
from tests.evaluation.endpoint import KEY, Endpoint, Request, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return editor().save_pretrained(tmp_path_factory.mktemp("models") / "editor")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def called(*args: object) -> tuple[int, str, str]:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as error:
            code = int(str(error.code))
        return code, *capsys.readouterr()

    return called


def brightness(request: Request) -> str:
    """As many scores as the words ask for, by the mean brightness of the last picture."""
    level = float(np.asarray(request.images[-1]).mean()) / 255
    return scores(*[1 + round(4 * level)] * 3) if "from 1 to 5" in request.prompt else scores(*[round(10 * level)] * 2)


def at(endpoint: Endpoint) -> tuple[object, ...]:
    return "--judge", "openai", "--judge_model", "vl", "--judge_base_url", endpoint.url


def test_imgedit_from_pictures_to_scores(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    imgedit_folder(tmp_path / "bench")
    given = ("evaluate", "imgedit", "--model", model, "--benchmark_dir", "bench", "--output_dir", "out", "--seed", 2)
    with serving(brightness) as endpoint:
        code, told, _ = run(*given, "--guidance_scale", 1.5, *at(endpoint), "--judge_max_concurrency", 3)
        assert len(endpoint.requests) == 9
    assert code == 0 and "9 pictures edited in out" in told and "overall (mean of the types)" in told
    (folder,) = (tmp_path / "out/judges").iterdir()
    assert f"written to out/judges/{folder.name}" in told
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["benchmark"], summary["model"], summary["seed"]) == ("imgedit", str(model), 2)
    assert summary["settings"] == {
        **{"num_inference_steps": 2, "guidance_scale": 1.5, "token_guidance_scale": 1.0},
        **{"temperature": 1.0, "top_k": 0, "top_p": 0.95, "decoding": "sequential", "jacobi_window": 16},
    }
    assert summary["prompt_rewriting"] is False and summary["judge"].startswith("vl at http://127.0.0.1")
    rows = rows_of(folder / "results.jsonl")
    assert summary["overall"] == pytest.approx(np.mean([row["scores"]["item"] for row in rows]))
    assert len({row["key"] for row in rows}) == 9


def test_gedit_a_stage_at_a_time(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    rows = [gedit_fields(index, group, language) for language in ("en", "cn") for index, group in enumerate(GROUPS)]
    gedit_folder(tmp_path / "bench", rows)
    given = ("evaluate", "gedit", "--benchmark_dir", "bench", "--output_dir", "out", "--language", "en")
    code, told, error = run(*given, "--stage", "generate", "--model", model, "--batch_size", 4)
    assert (code, told, error) == (0, "11 pictures edited in out\n", "")
    assert len(list((tmp_path / "out/fullset").rglob("*.png"))) == 11 and not (tmp_path / "out/judges").exists()
    with serving(brightness) as endpoint:
        code, told, _ = run(*given, "--stage", "judge", *at(endpoint))
        assert len(endpoint.requests) == 22
    assert code == 0 and "gedit en, 11 of 606 items" in told and "gedit cn" not in told
    (folder,) = (tmp_path / "out/judges").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"] == str(model) and summary["languages"]["en"]["full"]["O"] is not None


def test_a_wrong_key_ends_in_one_line(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    imgedit_folder(tmp_path / "bench", ["add"])
    with serving(brightness) as endpoint:
        endpoint.key = "another"
        given = ("evaluate", "imgedit", "--model", model, "--benchmark_dir", "bench", "--output_dir", "out")
        code, told, error = run(*given, *at(endpoint))
    assert code == 2 and told == "1 pictures edited in out\n"
    assert error.count("\n") == 1 and error.startswith("blip3o evaluate: the judge (vl at http://127.0.0.1")
    assert "refused the key in OPENAI_API_KEY (401)" in error and "0 items are judged and kept" in error


WRONG: list[tuple[list[object], str]] = [
    ([], "judge is missing; pass openai, transformers or a YAML file, or --stage generate"),
    (["--judge", "oracle"], "judge (oracle) must be openai, transformers or a YAML file"),
    (["--judge", "openai"], "judge (openai) needs judge_model"),
    (["--judge", "none.yaml"], "judge (none.yaml) is no file"),
    (["--judge", "openai", "--judge_model", "vl", "--judge_device", "cuda"], "judge (openai) takes no judge_device"),
    (["--judge", "openai", "--judge_model", "vl", "--judge_retries", -1], "retries (-1) must be at least 0"),
    (["--judge", "openai", "--judge_model", "vl", "--max_asks", 0], "max_asks (0) must be at least 1"),
    (["--judge", "openai", "--judge_model", "vl", "--judge_api_key_env", "NO_KEY"], "variable NO_KEY (api_key_env)"),
    (["--judge", "transformers", "--judge_model", "nonesuch"], "model (nonesuch) is unknown"),
    (["--stage", "generate", "--benchmark_dir", "none"], "benchmark_dir (none) is no folder"),
    (["--stage", "generate", "--model", "nonesuch"], "name_or_path (nonesuch) is unknown"),
    (["--stage", "generate", "--num_items", 0], "num_items (0) must be at least 1"),
    (["--stage", "half"], "invalid choice: 'half'"),
    (["--language", "en"], "unrecognized arguments: --language en"),
]


@pytest.mark.parametrize(("args", "told"), WRONG, ids=[" ".join(map(str, args)) for args, _ in WRONG])
def test_wrong_usage_is_told_before_anything_is_made(
    run: Run, model: Path, tmp_path: Path, args: list[object], told: str
) -> None:
    imgedit_folder(tmp_path / "bench", ["add"])
    code, out, error = run("evaluate", "imgedit", "--model", model, "--benchmark_dir", "bench", *args)
    assert code == 2 and out == "" and told in error.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_the_folder_is_asked_for_and_the_help_lists_everything(run: Run) -> None:
    code, _, error = run("evaluate", "gedit")
    assert code == 2 and "the following arguments are required: --benchmark_dir" in error
    code, told, _ = run("evaluate", "gedit", "--help")
    assert code == 0 and told.startswith("usage: blip3o evaluate gedit")
    for name in ("--stage", "--language", "--judge_model", "--token_guidance_scale", "--model"):
        assert name in told
    assert "`blip3o evaluate imgedit --help`" in " ".join(run("evaluate", "--help")[1].split())


def test_the_help_is_light() -> None:
    code = "import sys; from blip3o.cli import main\ntry: main(['evaluate', 'imgedit', '--help'])\n"
    code += "finally: print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert not {"torch", "numpy", "PIL", "openai", "transformers", "rich"} & set(done.stderr.split())


def test_a_file_describes_any_judge(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"

    def write(**described: Any) -> None:
        path.write_text(yaml.safe_dump(described))

    write(class_path="tests.evaluation.benchmarks.Silent", init_args={"words": "nothing"})
    judge = choose_judge(str(path), {"model": None})
    assert judge.id == "silent: nothing"
    write(class_path="blip3o.evaluation.judges.TransformersJudge", init_args={"model": "m", "max_new_tokens": 9})
    judge = choose_judge(str(path), {})
    assert isinstance(judge, TransformersJudge) and judge.max_new_tokens == 9
    with pytest.raises(ValueError, match="holds its own arguments; write judge_model into the file"):
        choose_judge(str(path), {"model": "other"})
    write(class_path="torch.nn.Linear", init_args={"in_features": 1, "out_features": 1})
    with pytest.raises(ValueError, match=r"judge.yaml\) can not be built"):
        choose_judge(str(path), {})
    write(class_path="blip3o.evaluation.judges.TransformersJudge", init_args={"model": "m", "max_new_tokens": 0})
    with pytest.raises(ValueError, match=r"max_new_tokens \(0\) must be at least 1"):
        choose_judge(str(path), {})
