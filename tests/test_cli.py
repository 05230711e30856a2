"""The command line: what it writes, and that wrong usage ends in one clear line and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch  # noqa: F401 (its logger keeps the stderr of its first import, which no test may own)
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.cli import main
from blip3o.images import read_settings
from tests.tiny_edits import tiny_edit_pipe

MINI = Path(__file__).parents[1] / "experiments/shapes/mini.yaml"
PROMPT = "a red circle left of a blue square"


class Result(NamedTuple):
    code: object
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def blip3o(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command line in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        try:
            code: object = main([str(arg) for arg in args])
        except SystemExit as error:
            code = error.code
        return Result(code, *capsys.readouterr())

    return run


def run_process(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_is_light_and_lists_every_command(tmp_path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from blip3o.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(time.perf_counter() - start, *sorted(sys.modules), file=sys.stderr)"
    )
    done = run_process("-c", code, cwd=tmp_path)
    seconds, *modules = done.stderr.split()
    assert done.returncode == 0
    assert float(seconds) < 1
    assert not {"torch", "numpy", "PIL", "lightning", "transformers", "diffusers"} & set(modules)
    for command in (
        "generate",
        "evaluate",
        "ablate",
        "info",
        "convert",
        "export",
        "fit",
        "validate",
        "test",
        "predict",
    ):
        assert f"    {command}" in done.stdout


def test_wrong_usage_of_the_real_command_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = run_process("-m", "blip3o.cli", "generate", PROMPT, "--output", "missing/out.png", cwd=tmp_path)
    line = "blip3o generate: output (missing/out.png) lies in a folder that does not exist; create missing first.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_picture_holds_what_is_needed_to_draw_it_again(blip3o: Command, tiny_folder: Path, tmp_path: Path) -> None:
    result = blip3o(
        *("generate", PROMPT, "--model", tiny_folder, "--output", "a.png", "--seed", -3),
        *("--num_inference_steps", 3, "--guidance_scale", 1.5),
    )
    assert (result.code, result.out) == (0, "a.png\n")
    settings = read_settings(tmp_path / "a.png")
    assert settings == {
        **{"prompt": PROMPT, "model": str(tiny_folder), "seed": -3, "num_inference_steps": 3, "guidance_scale": 1.5},
        **{"token_guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 0.95},
        **{"decoding": "sequential", "jacobi_window": 16},
    }
    pipe = Blip3oPipeline.from_pretrained(settings.pop("model"))
    generator = torch.Generator().manual_seed(settings.pop("seed"))
    again = pipe(settings.pop("prompt"), generator=[generator], **settings).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(tmp_path / "a.png")))
    blip3o("generate", PROMPT, "--model", tiny_folder, "--output", "b.png", "--seed", -3)
    blip3o("generate", PROMPT, "--model", tiny_folder, "--output", "c.png", "--seed", -3)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert not np.array_equal(np.asarray(again), np.asarray(Image.open(tmp_path / "b.png")))


def test_several_images_are_numbered_and_each_has_its_own_seed(
    blip3o: Command, tiny_folder: Path, tmp_path: Path
) -> None:
    result = blip3o("generate", PROMPT, "--model", tiny_folder, "--num_images", 3, "--seed", 5)
    names = ["out-0.png", "out-1.png", "out-2.png"]
    assert result.out.split() == names == sorted(path.name for path in tmp_path.iterdir())
    assert [read_settings(tmp_path / name)["seed"] for name in names] == [5, 6, 7]
    blip3o("generate", PROMPT, "--model", tiny_folder, "--seed", 6, "--output", "alone.png")
    together, alone = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("out-1.png", "alone.png"))
    assert np.abs(together - alone).max() <= 1


WRONG: list[tuple[list[object], str]] = [
    (["--output", "missing/out.png"], "output (missing/out.png) lies in a folder that does not exist; create missing"),
    (["--output", "out.jpg"], "output (out.jpg) must end in .png"),
    (["--num_images", 0], "num_images (0) must be at least 1"),
    (["--num_inference_steps", 0], "num_inference_steps (0) must be a whole number of at least 1"),
    (["--num_inference_steps", 2.5], "--num_inference_steps: invalid int value: '2.5'"),
    (["--guidance_scale", -1], "guidance_scale (-1.0) must be at least 0"),
    (["--guidance_scale", "nan"], "guidance_scale (nan) must be a finite number"),
    (["--top_p", 0], "top_p (0.0) must lie in (0, 1]"),
    (["--seed", 2**64], "seed (18446744073709551616) must lie in"),
    (["--model", "nonesuch"], "name_or_path (nonesuch) is unknown; pass a bundled name"),
    (["--model", "."], "has no config.yaml"),
    (["--device", "abacus"], "device (abacus) can not be used here; pass 'cpu'"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
]


@pytest.mark.parametrize(("args", "told"), WRONG, ids=[" ".join(map(str, args)) for args, _ in WRONG])
def test_wrong_usage_of_generate(
    blip3o: Command, tiny_folder: Path, tmp_path: Path, args: list[object], told: str
) -> None:
    assert_refused(blip3o("generate", PROMPT, "--model", tiny_folder, *args), told, tmp_path)


def test_an_empty_prompt_and_a_missing_command(blip3o: Command, tiny_folder: Path, tmp_path: Path) -> None:
    assert_refused(blip3o("generate", " ", "--model", tiny_folder), "prompt (' ') must be a string", tmp_path)
    assert_refused(blip3o(), "the following arguments are required: COMMAND", tmp_path)
    assert_refused(blip3o("draw"), "invalid choice: 'draw'", tmp_path)


def assert_refused(result: Result, told: str, folder: Path) -> None:
    assert result.code == 2 and result.out == ""
    *usage, line = result.err.splitlines()
    assert told in line and line.startswith("blip3o")
    assert not usage or usage[0].startswith("usage: ")
    assert "Traceback" not in result.err
    assert list(folder.iterdir()) == []


def test_a_failure_to_write_leaves_no_part_of_a_file(
    blip3o: Command, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Image.Image, path: Path, **arguments: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    result = blip3o("generate", PROMPT, "--model", tiny_folder)
    assert (result.code, result.err) == (1, "blip3o generate: no space left\n")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_writes_genevals_layout(blip3o: Command, tiny_folder: Path, tmp_path: Path) -> None:
    result = blip3o(
        *("evaluate", "shapes", "--model", tiny_folder, "--world", "shapes-mini", "--output_dir", "eval"),
        *("--num_captions", 6, "--seed", 2, "--num_inference_steps", 1, "--guidance_scale", 1.5),
    )
    assert result.code == 0 and "overall" in result.out and "written to eval" in result.out
    assert (tmp_path / "eval/00005/samples/0000.png").is_file() and not (tmp_path / "eval/00006").exists()
    assert len((tmp_path / "eval/results.jsonl").read_text().splitlines()) == 6
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert (summary["seed"], summary["num_images"], summary["prompt_rewriting"]) == (2, 6, False)
    assert summary["model"] == str(tiny_folder) and summary["judge"].startswith("blip3o.shapes.verify")
    assert (summary["settings"]["num_inference_steps"], summary["settings"]["guidance_scale"]) == (1, 1.5)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--seed", -1], "seed (-1) must lie in 0.."),
        (["--num_captions", 0], "num_captions (0) must be at least 1"),
        (["--batch_size", 0], "batch_size (0) must be at least 1"),
        (["--world", "cities"], "'cities'"),
        (["--world", "shapes"], "holds words the model does not know"),
        (["--num_inference_steps", 0], "num_inference_steps (0)"),
        (["--model", "nonesuch"], "name_or_path (nonesuch) is unknown"),
    ],
)
def test_wrong_usage_of_evaluate(
    blip3o: Command, tiny_folder: Path, tmp_path: Path, args: list[object], told: str
) -> None:
    given = ["evaluate", "shapes", "--model", tiny_folder, "--world", "shapes-mini", "--output_dir", "eval", *args]
    assert_refused(blip3o(*given), told, tmp_path)


def test_evaluate_shapes_edit_scores_held_out_edits(blip3o: Command, tmp_path: Path) -> None:
    tiny_edit_pipe().save_pretrained(tmp_path / "model")
    result = blip3o(
        *("evaluate", "shapes-edit", "--model", "model", "--world", "shapes-mini", "--output_dir", "eval"),
        *("--num_edits", 4, "--seed", 2, "--edit_kinds", "recolor", "combine", "--num_inference_steps", 1),
    )
    assert result.code == 0 and "consistency" in result.out and "written to eval" in result.out
    assert (tmp_path / "eval/00003/references/1.png").is_file() and not (tmp_path / "eval/00004").exists()
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert (summary["benchmark"], summary["seed"], summary["num_images"]) == ("shapes-edit", 2, 4)
    assert list(summary["kinds"]) == ["recolor", "combine"] and summary["settings"]["num_inference_steps"] == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "model can not be told an edit: its text tokenizer lacks ["),
        (["--model", "tiny", "--world", "shapes"], "name a model that was trained on edits"),
        (["--num_edits", 0], "num_edits (0) must be at least 1"),
        (["--edit_kinds", "move"], "kind ('move') is no kind of edit"),
        (["--edit_kinds"], "--edit_kinds: expected at least one argument"),
    ],
)
def test_wrong_usage_of_evaluate_shapes_edit(
    blip3o: Command, tiny_folder: Path, tmp_path: Path, args: list[object], told: str
) -> None:
    given = ["evaluate", "shapes-edit", "--model", tiny_folder, "--world", "shapes-mini", "--output_dir", "eval", *args]
    assert_refused(blip3o(*given), told, tmp_path)


def test_info_prints_the_parts(blip3o: Command, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = blip3o("info", "--model", tiny_folder)
    assert result.code == 0
    for words in ("ConvTokenizer", "CausalLM", "MLPBridge", "FlowHead", "16 tokens an image", "num_inference_steps=2"):
        assert words in result.out


def test_info_of_an_experiment_tells_parameters_work_and_memory(blip3o: Command) -> None:
    result = blip3o("info", "--config", MINI.parent / "joint.yaml", "--devices", "4")
    assert result.code == 0
    for words in ("7,949,519", "5,354,704", "denoising", "a GPU, DDP", "a GPU, FSDP on 4"):
        assert words in result.out
    module = blip3o("info", "--config", MINI.parent / "codec.yaml")
    assert "2,043,068" in module.out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--config", "nonesuch.yaml"], "config (nonesuch.yaml) is no file"),
        (["--devices", "0"], "devices (0) must be at least 1"),
        (["--model", "nonesuch"], "name_or_path (nonesuch) is unknown"),
    ],
)
def test_wrong_usage_of_info(blip3o: Command, tmp_path: Path, args: list[object], told: str) -> None:
    assert_refused(blip3o("info", *args), told, tmp_path)


def module_args(config: dict[str, Any]) -> dict[str, Any]:
    return config["model"]["init_args"]


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda c: module_args(c).update(rendr_every=3), "Option 'rendr_every' is not accepted"),
    "unknown setting": (lambda c: c["trainer"].update(max_step=3), "max_step"),
    "wrong type": (lambda c: module_args(c).update(render_every="often"), "Expected a <class 'int'>. Got value: often"),
    "no subclass": (
        lambda c: module_args(c)["model"]["init_args"].update(bridge={"class_path": "torch.nn.Linear"}),
        "Expected 'torch.nn.Linear' to be a subclass of <class 'Bridge'>",
    ),
    "no such class": (lambda c: c["data"].update(class_path="blip3o.data.shapes.Squares"), "Squares"),
    "refused value": (lambda c: module_args(c).update(render_every=0), "render_every (0) must be at least 1"),
    "missing weights": (lambda c: module_args(c).update(weights={"tokenizer": "none.safetensors"}), "none.safetensors"),
    "unknown part": (lambda c: module_args(c).update(weights={"brigde": "none.safetensors"}), "names 'brigde'"),
    "no end": (lambda c: c["trainer"].update(max_steps=-1, max_epochs=1), "trainer.max_steps (-1) must be at least 1"),
    "missing checkpoint": (lambda c: c.update(ckpt_path="none.ckpt"), "ckpt_path (none.ckpt) is no file"),
    "batch of zero": (lambda c: c["data"]["init_args"].update(batch_size=0), "batch_size (0) must be at least 1"),
    "steps of zero": (lambda c: module_args(c).update(num_inference_steps=0), "num_inference_steps (0) must be"),
    "share above one": (
        lambda c: module_args(c).update(caption_dropout=1.5),
        "caption_dropout (1.5) must lie in [0, 1]",
    ),
    "unknown config key": (
        lambda c: module_args(c)["model"]["init_args"]["ar"]["init_args"]["config"].update(intermediate_sise=8),
        "qwen3 of transformers does not know: intermediate_sise; did you mean intermediate_size?",
    ),
    "wrong config type": (
        lambda c: module_args(c)["model"]["init_args"]["ar"]["init_args"]["config"].update(hidden_size="big"),
        "does not suit qwen3",
    ),
    "missing device": (lambda c: c["trainer"].update(accelerator="abacus"), "abacus"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_yaml_exits_with_2_and_says_what(blip3o: Command, tmp_path: Path, mistake: str) -> None:
    change, told = MISTAKES[mistake]
    config = yaml.safe_load(MINI.read_text())
    config["trainer"] |= {"max_steps": 1, "limit_val_batches": 0}
    change(config)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    result = blip3o("fit", "--config", "run.yaml")
    assert result.code == 2
    assert told in result.err and "error: " in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
