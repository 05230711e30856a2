"""The published recipe: full size on the meta device, its numbers, and a step of every stage with small parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip3o.costs import image_cost
from blip3o.training.cli import run
from blip3o.training.experiment import build_on_meta
from blip3o.training.joint import JointModule
from tests.data.pictures import plain, write_jsonl, write_tar
from tests.published import released_pipeline
from tests.rewards.judges import write_judges

FOLDER = Path(__file__).parents[1] / "experiments/published"
STAGES = ("pretrain", "sft", "edit", "grpo_text", "grpo_geneval")
# Steps, learning rate and rows a step of the project page's table; for GRPO, rows are sequences.
TABLE = {
    "pretrain": (336_000, 1e-4, 512),
    "sft": (7_000, 5e-5, 128),
    "edit": (None, 5e-5, 96),
    "grpo_text": (900, 1e-6, 512),
    "grpo_geneval": (400, 5e-6, 256),
}
TRAINED_OF_SANA = {"caption_projection", "caption_norm"}


def read(stage: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / f"{stage}.yaml").read_text()))


def test_every_stage_is_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_has_the_published_sizes_and_trains_the_published_parts(stage: str) -> None:
    module, _ = build_on_meta(FOLDER / f"{stage}.yaml")
    model = module.model
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    assert model.tokenizer.num_tokens() == 729
    assert model.tokenizer.codebook_size == 65_536
    # Qwen3-0.6B's layers and norm, and two tables over its 151,669 tokens, 5 markers and scales, and the codes.
    layer = 1024 * 128 * (2 * 16 + 2 * 8) + 2 * 128 + 3 * 1024 * 3072 + 2 * 1024
    assert counts["ar"] == 28 * layer + 1024 + 2 * (151_669 + 5 + 65_536) * 1024
    assert counts["bridge"] == (1024 * 2304 + 2304) + (2304 * 2304 + 2304) + 2304
    assert sum(p.numel() for p in model.diffusion.denoiser.parameters()) == 1_604_641_952
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} >= {"ar"}
    assert all(p.requires_grad for p in model.ar.parameters())
    of_sana = {name.split(".")[3] for name in trained if name.startswith("diffusion.denoiser.")}
    others = {name.split(".")[0] for name in trained} - {"ar"}
    if isinstance(module, JointModule):
        editing = stage == "edit"
        assert of_sana == TRAINED_OF_SANA | ({"patch_embed", "proj_out"} if editing else set())
        assert others == {"bridge", "diffusion"} | ({"reference_latents"} if editing else set())
    else:
        assert not of_sana and not others
    assert image_cost(model, prompt_length=64, num_inference_steps=30) is not None


@pytest.mark.parametrize("stage", STAGES)
def test_the_numbers_are_those_of_the_table(stage: str) -> None:
    config = read(stage)
    module, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    steps, rate, rows = TABLE[stage]
    each = data["batch_size"] * trainer["devices"] * trainer["num_nodes"] * trainer.get("accumulate_grad_batches", 1)
    assert each * module.get("num_generations", 1) == rows
    assert module["optimization"]["lr"] == rate
    assert steps in (None, trainer["max_steps"])


def with_small_parts(stage: str, folder: Path) -> dict[str, Any]:
    """A stage's configuration with small parts, one process and data in `folder`."""
    config = read(stage)
    module, data = config["model"]["init_args"], config["data"]["init_args"]
    editing = {"reference": "width", "reference_latents": "MLPBridge"} if stage == "edit" else {}
    small = released_pipeline(reference=editing.get("reference")).model.config()
    if editing:
        small["init_args"]["reference_latents"] = {"class_path": "blip3o.bridge.mlp.MLPBridge"}
    module |= {"model": small, "weights": None, "num_inference_steps": 1}
    if stage.startswith("grpo"):
        prompts = [{"prompt": 'a "red" circle', "tag": "colors", "include": [{"class": "apple", "count": 1}]}] * 2
        data |= {"file": str(write_jsonl(folder / "prompts.jsonl", prompts))}
        module |= {"num_generations": 2}
        for reward in module["rewards"]:
            if "geneval" in reward["class_path"]:
                detector, clip = write_judges(folder)
                reward["init_args"] |= {"detector": detector, "clip": clip, "self_test": False, "device": "cpu"}
    else:
        files = {"0.jpg": plain(1, kind="JPEG"), "0.txt": b"a red circle", "a.png": plain(2), "b.png": plain(3)}
        write_tar(folder / "rows.tar", files)
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(files[name])
        row = {"instruction": "red", "input_images": ["a.png"], "output_image": "b.png"}
        write_jsonl(folder / "rows.jsonl", [row])
        (folder / "rows.json").write_text(
            json.dumps([{"input_prompt": "red", "input_image": "a.png", "output_image": "b.png"}])
        )
        for entry in data["sources"]:
            arguments = entry["source"]["init_args"]
            kind = "tars" if "tars" in arguments else "files"
            suffix = ".tar" if kind == "tars" else Path(arguments[kind]).suffix
            entry["source"]["init_args"] = {kind: str(folder / f"rows{suffix}")}
        data |= {"image_size": 32, "token_image_size": 28, "batch_size": 2, "num_workers": 0}
    changed = {"max_steps": 1, "accelerator": "cpu", "num_nodes": 1, "devices": 1, "strategy": "auto"}
    config["trainer"] |= {**changed, "precision": "32-true", "val_check_interval": None, "limit_val_batches": 0}
    config["trainer"] |= {"accumulate_grad_batches": 1, "enable_progress_bar": False, "log_every_n_steps": 1}
    return config


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_with_small_parts(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(with_small_parts(stage, tmp_path)))
    run(["fit", "--config", str(path)])
    written = tmp_path / f"runs/published/{stage}"
    assert {p.stem for p in (written / "model").glob("*.safetensors")} >= {"tokenizer", "ar", "bridge", "diffusion"}
    assert "train/" in (written / "version_0/metrics.csv").read_text()
