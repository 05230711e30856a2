"""From the released layout to ours and back: every tensor bit for bit, and what has no place there is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from blip3o import Blip3oPipeline
from blip3o.checkpoints import CONFIG_NAME, export_published, load_published
from blip3o.cli import main
from blip3o.diffusion import VPrediction
from tests.fixtures import FOLDER, needs_fixtures


@needs_fixtures
@pytest.mark.parametrize("name", ["t2i", "edit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_convert_load_and_export_reproduce_every_tensor(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    original = {
        key: tensor.to(dtype) for key, tensor in load_file(FOLDER / name / "checkpoint/model.safetensors").items()
    }
    source = tmp_path / "released"
    source.mkdir()
    for path in (FOLDER / name / "checkpoint").glob("*.json"):
        (source / path.name).write_bytes(path.read_bytes())
    save_file(original, source / "model.safetensors")
    folder = FOLDER / name
    given = ["--diffusion", str(folder / "sana"), "--vision", str(folder / "teacher")]
    assert main(["convert", str(source), str(tmp_path / "ours"), *given]) == 0
    Blip3oPipeline.from_pretrained(tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == original.keys()
    for key, tensor in original.items():
        assert back[key].dtype == dtype and torch.equal(back[key], tensor), key
    theirs, ours = (json.loads((each / "config.json").read_text()) for each in (source, tmp_path / "back"))
    for key in theirs.keys() & ours.keys() - {"diffusion_name_or_path", "torch_dtype", "transformers_version"}:
        assert ours[key] == theirs[key], key
    for key in ("image_start_token_id", "use_und_image_vae", "mm_vision_select_layer", "vocab_size", "hidden_size"):
        assert key in ours


@needs_fixtures
def test_an_exported_checkpoint_needs_nothing_else(tmp_path: Path) -> None:
    folder = FOLDER / "t2i"
    pipe = load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")
    export_published(pipe.save_pretrained(tmp_path / "ours"), tmp_path / "back")
    again = load_published(tmp_path / "back")
    for key, tensor in pipe.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor), key
    with pytest.raises(ValueError, match="exists and is no empty folder"):
        export_published(tmp_path / "ours", tmp_path / "back")


@needs_fixtures
@pytest.mark.parametrize("asked", [{"reads": "prompt"}, {"ar_layers": [-1, 1]}])
def test_a_bridge_that_reads_what_the_released_code_does_not_give_is_refused(
    tmp_path: Path, asked: dict[str, object]
) -> None:
    folder = FOLDER / "t2i"
    pipe = load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")
    ours = pipe.save_pretrained(tmp_path / "ours")
    stored = yaml.safe_load((ours / CONFIG_NAME).read_text())
    stored["model"]["init_args"]["bridge"]["init_args"] |= asked
    (ours / CONFIG_NAME).write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match="must read the last hidden states at image_tokens"):
        export_published(ours, tmp_path / "back")


@needs_fixtures
def test_a_head_without_an_objective_has_the_published_one_and_other_objectives_are_refused(tmp_path: Path) -> None:
    folder = FOLDER / "t2i"
    pipe = load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")
    ours = pipe.save_pretrained(tmp_path / "ours")
    config = yaml.safe_load((ours / "config.yaml").read_text())
    head = config["model"]["init_args"]["diffusion"]["init_args"]
    for number, objective in enumerate([None, VPrediction().config()]):
        head["objective"] = objective
        (ours / "config.yaml").write_text(yaml.safe_dump(config))
        out = tmp_path / f"out{number}"
        if objective is None:
            export_published(ours, out)
            assert json.loads((out / "diffusion/scheduler/scheduler_config.json").read_text())["shift"] == 3.0
        else:
            with pytest.raises(ValueError, match=r"head's objective is a .*VPrediction; the released code knows"):
                export_published(ours, out)
            assert not out.exists()


def test_models_of_other_parts_are_refused_and_nothing_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer is a blip3o\.tokenizers\.conv\.ConvTokenizer; the released code knows"
    ):
        export_published(tiny_folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        export_published(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert main(["export", "nonesuch", str(tmp_path / "out")]) == 2
    assert "model (nonesuch) is unknown" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
