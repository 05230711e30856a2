"""From the released layout to ours and back: every tensor bit for bit, and what has no place there is refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from blip3o import Blip3oPipeline
from blip3o.ar.text import save_text_tokenizer, word_tokenizer
from blip3o.checkpoints import CONFIG_NAME, export_published, load_published
from blip3o.cli import main
from blip3o.diffusion import VPrediction
from tests.fixtures import FOLDER, needs_fixtures
from tests.published import released_pipeline, written
from tests.tiny import WORDS


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


@needs_fixtures
def test_what_the_released_code_reads_beside_the_weights(tmp_path: Path) -> None:
    folder = FOLDER / "t2i"
    pipe = load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")
    for dtype in (torch.float32, torch.bfloat16):
        ours = pipe.save_pretrained(tmp_path / f"ours-{dtype}", dtype=dtype)
        out = export_published(ours, tmp_path / f"out-{dtype}")
        config = json.loads((out / "config.json").read_text())
        assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    theirs = json.loads((folder / "checkpoint/config.json").read_text())
    for key in ("tokenizer_padding_side", "tokenizer_model_max_length"):
        assert config[key] == theirs[key]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {key: theirs[key] for key in ("eos_token_id", "pad_token_id")}


def test_the_text_tokenizer_is_written_for_transformers_4_and_read_by_5(tmp_path: Path) -> None:
    pipe = released_pipeline()
    out = written(pipe, tmp_path / "out")
    assert json.loads((out / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_start|>"],
        "extra_special_tokens": {},
        "model_max_length": int(1e30),
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    first, again = pipe.model.ar.text_tokenizer, AutoTokenizer.from_pretrained(out)  # type: ignore[union-attr]
    text = "<|im_start|>a red circle, a blue square<|im_end|>"
    assert again(text)["input_ids"] == first(text)["input_ids"]
    assert again.special_tokens_map == first.special_tokens_map
    assert again.extra_special_tokens == first.extra_special_tokens == ["<|im_start|>"]
    assert again.convert_tokens_to_ids("<I0>") == pipe.model.ar.vocabulary.first_code  # type: ignore[union-attr]


def test_a_template_and_named_tokens_are_written_for_transformers_4_too(tmp_path: Path) -> None:
    text_tokenizer = word_tokenizer(WORDS)
    text_tokenizer.chat_template = "{{ messages }}"
    text_tokenizer.save_pretrained(tmp_path / "first")
    path = tmp_path / "first/tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model_specific_special_tokens": {"image_token": "red"}})
    )
    save_text_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "first"), tmp_path / "second")
    config = json.loads((tmp_path / "second/tokenizer_config.json").read_text())
    assert config["extra_special_tokens"] == {"image_token": "red"}
    assert config["chat_template"] == "{{ messages }}"
    assert not {"backend", "is_local", "local_files_only", "model_specific_special_tokens"} & config.keys()
    again = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert again.image_token == "red" and again.chat_template == "{{ messages }}"


def test_places_where_nothing_can_be_exported_are_refused_first(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    with pytest.raises(ValueError, match=r"out \(.*\) lies below .*/notes, which is no folder"):
        export_published(tiny_folder, tmp_path / "notes/out")
    (tmp_path / "link").symlink_to(tiny_folder)
    for out in (tiny_folder / "deep/er", tmp_path / "link/out"):
        with pytest.raises(ValueError, match=r"out \(.*\) lies in the model folder"):
            export_published(tiny_folder, out)
        assert not out.exists()


def test_others_may_read_an_export(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        out = written(released_pipeline(), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    assert modes == {"": 0o755, ".json": 0o644, ".safetensors": 0o644}


def test_models_of_other_parts_are_refused_and_nothing_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer is a blip3o\.tokenizers\.conv\.ConvTokenizer; the released code knows"
    ):
        export_published(tiny_folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        export_published(tmp_path, f"{tmp_path}-out")
    assert not Path(f"{tmp_path}-out").exists()
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert main(["export", "nonesuch", str(tmp_path / "out")]) == 2
    assert "model (nonesuch) is unknown" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
