"""Damaged folders, ours and released ones: one error that names file and key, no code run, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.checkpoints import CONFIG_NAME, export_published, load_published
from blip3o.cli import main
from tests.published import released_pipeline, written

Harm = Callable[[Path], object]
BRIDGE, GAIN = "bridge.safetensors", "layers.3.weight"
CONNECTOR = "model.diffusion_connector.3.weight"


class Bomb:
    """Makes a folder where a pickle is trusted."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.victim),)


def pickled(name: str, *, instead_of: str | None = None) -> Harm:
    """Puts a pickle into the folder that, where it is trusted, makes the folder `executed`."""

    def harm(folder: Path) -> None:
        if instead_of is not None:
            (folder / instead_of).unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb(folder.parent / "executed")))

    return harm


def truncated(name: str, share: float = 0.5) -> Harm:
    def harm(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return harm


def tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Harm:
    def harm(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return harm


def config(name: str, **changes: Any) -> Harm:
    """Sets keys of a JSON file."""

    def harm(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return harm


def text(name: str, content: str) -> Harm:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def resolved(key: str, value: Any) -> Harm:
    """Sets a key of our config.yaml, its path written with points."""

    def harm(folder: Path) -> None:
        stored = yaml.safe_load((folder / CONFIG_NAME).read_text())
        *path, last = key.split(".")
        inner = stored
        for step in path:
            inner = inner[step]
        inner[last] = value
        (folder / CONFIG_NAME).write_text(yaml.safe_dump(stored))

    return harm


AR, INIT = "model.init_args.ar", "model.init_args.bridge"
OURS: dict[str, tuple[Harm, str]] = {
    "pickle for a part": (
        pickled("bridge.pt", instead_of=BRIDGE),
        r"bridge\.safetensors is missing; .*; bridge\.pt is a pickle",
    ),
    "pickle under the part's name": (pickled(BRIDGE), r"bridge\.safetensors is damaged"),
    "pickle for the config": (pickled(CONFIG_NAME), rf"{CONFIG_NAME} is no model configuration"),
    "yaml that makes objects": (
        text(CONFIG_NAME, "model: !!python/object/apply:os.mkdir ['executed']"),
        rf"{CONFIG_NAME} is no model configuration",
    ),
    "truncated": (truncated(BRIDGE), r"bridge\.safetensors is damaged"),
    "truncated by a byte": (truncated("ar.safetensors", 0.9999), r"ar\.safetensors is damaged"),
    "empty": (truncated(BRIDGE, 0), r"bridge\.safetensors is damaged"),
    "unknown class": (
        resolved(f"{INIT}.class_path", "blip3o.bridge.mlp.MLPRidge"),
        r"config\.yaml: model\.init_args\.bridge is a blip3o\.bridge\.mlp\.MLPRidge, .*no attribute 'MLPRidge'",
    ),
    "class of an unknown module": (
        resolved(f"{AR}.class_path", "blip3o.ra.CausalLM"),
        r"config\.yaml: model\.init_args\.ar is a blip3o\.ra\.CausalLM, .*No module named|has no attribute 'ra'",
    ),
    "function for a class": (
        resolved(f"{INIT}.class_path", "torch.load"),
        r"config\.yaml: model\.init_args\.bridge is a torch\.load, .*is no Part",
    ),
    "class from elsewhere": (
        resolved(f"{INIT}.class_path", "os.system"),
        r"config\.yaml: .*under model\.init_args\.bridge\.class_path: \['os\.system'\]; pass trust_remote_code",
    ),
    "unknown argument": (
        resolved(f"{INIT}.init_args.breadth", 3),
        r"config\.yaml: model\.init_args\.bridge is a .*MLPBridge, .*'breadth'",
    ),
    "unknown architecture": (
        resolved(f"{AR}.init_args.config.model_type", "qwen33"),
        r"config\.yaml: model\.init_args\.ar is a .*CausalLM, .*qwen33",
    ),
    "no arguments": (resolved(f"{AR}.init_args", [1]), rf"{CONFIG_NAME} is no model configuration"),
    "renamed tensor": (
        tensors(BRIDGE, lambda s: s.update({"layers.4.weight": s.pop(GAIN)})),
        r"bridge\.safetensors does not fit .*missing: layers\.3\.weight; unexpected: layers\.4\.weight",
    ),
    "wrong shape": (
        tensors(BRIDGE, lambda s: s.update({GAIN: torch.ones(5)})),
        r"bridge\.safetensors does not fit .*mis-shaped: layers\.3\.weight \(5,\) instead of \(24,\)",
    ),
    "whole numbers for weights": (
        tensors(BRIDGE, lambda s: s.update({GAIN: torch.ones(24, dtype=torch.int64)})),
        r"bridge\.safetensors does not fit .*wrong type: layers\.3\.weight torch\.int64 instead of torch\.float32",
    ),
    "no text tokenizer": (gone("text_tokenizer"), r"text_tokenizer\)? (is missing|holds no tokenizer)"),
    "broken text tokenizer": (text("text_tokenizer/tokenizer.json", "{"), "text_tokenizer"),
}
TRANSFORMER, VAE = "diffusion/transformer/config.json", "diffusion/vae/config.json"
SCHEDULER, INDEX = "diffusion/scheduler/scheduler_config.json", "model.safetensors.index.json"
RELEASED: dict[str, tuple[Harm, str]] = {
    "pickle alone": (pickled("pytorch_model.bin", instead_of="model.safetensors"), r"pytorch_model\.bin is a pickle"),
    "pickle under the weights' name": (pickled("model.safetensors"), r"model\.safetensors is damaged"),
    "pickle for the config": (pickled("config.json"), r"config\.json is no JSON"),
    "truncated": (truncated("model.safetensors"), r"model\.safetensors is damaged"),
    "truncated by a byte": (truncated("model.safetensors", 0.99999), r"model\.safetensors is damaged"),
    "empty": (truncated("model.safetensors", 0), r"model\.safetensors is damaged"),
    "renamed tensor": (
        tensors("model.safetensors", lambda s: s.update({"model.diffusion_conector.3.weight": s.pop(CONNECTOR)})),
        r"model\.safetensors holds tensors of no known part: model\.diffusion_conector\.3\.weight",
    ),
    "tensor renamed within its part": (
        tensors("model.safetensors", lambda s: s.update({"model.diffusion_connector.4.weight": s.pop(CONNECTOR)})),
        r"model\.safetensors does not .*: missing: model\.diffusion_connector\.3\.weight; unexpected: .*\.4\.",
    ),
    "wrong shape": (
        tensors("model.safetensors", lambda s: s.update({"model.norm.weight": torch.ones(31)})),
        r"ar: mis-shaped: model\.norm\.weight \(31,\) instead of \(32,\)",
    ),
    "table too small": (
        tensors("model.safetensors", lambda s: s.update({"lm_head.weight": s["lm_head.weight"][:-1].clone()})),
        r"ar: mis-shaped: lm_head\.weight \(57, 32\) instead of \(58, 32\)",
    ),
    "unknown model": (
        config("config.json", model_type="llava"),
        r"released/config\.json: model_type \('llava'\) must be blip3o_qwen",
    ),
    "unknown transformer": (
        config(TRANSFORMER, _class_name="FluxTransformer2DModel"),
        r"transformer/config\.json: _class_name \('FluxTransformer2DModel'\) must be SanaTransformer2DModel",
    ),
    "unknown codec": (config(VAE, _class_name="AutoencoderKL"), r"vae/config\.json: _class_name \('AutoencoderKL'\)"),
    "unknown scheduler": (
        config(SCHEDULER, _class_name="Shedular"),
        r"scheduler_config\.json: _class_name \('Shedular'\) is no scheduler of diffusers",
    ),
    "scheduler of another kind": (
        config(SCHEDULER, use_karras_sigmas=True),
        r"scheduler_config\.json: use_karras_sigmas \(True\) is not supported",
    ),
    "scheduler of other steps": (
        config(SCHEDULER, num_train_timesteps=500),
        r"num_train_timesteps \(500\) must be 1000",
    ),
    "shift in words": (config(SCHEDULER, shift="three"), r"scheduler_config\.json: shift \('three'\) must be a number"),
    "unknown tower": (config("vision/config.json", model_type="clip"), r"vision/config\.json: model_type \('clip'\)"),
    "unknown part of a tower": (
        config("vision/config.json", vision_config={"model_type": "vit"}),
        r"vision/config\.json: model_type \('vit'\)",
    ),
    "unknown key": (config(TRANSFORMER, num_layer=3), r"transformer/config\.json: config holds keys .*num_layer"),
    "wrong type": (config("config.json", hidden_size="wide"), r"^\S*released/config\.json: [^\n{]*hidden_size[^\n{]*$"),
    "key that lacks": (
        config("config.json", image_start_tag_id=None),
        r"config\.json: image_start_tag_id \(None\) must",
    ),
    "ids elsewhere": (
        config("config.json", image_start_token_id=3, num_image_tokens=31),
        r"config\.json .*image_start_token_id 3 instead of 26, num_image_tokens 31 instead of 32",
    ),
    "a list": (text("config.json", "[1, 2]"), r"config\.json is no JSON object, but a list"),
    "no JSON": (text(VAE, "{"), r"vae/config\.json is no JSON"),
    "no config": (gone("config.json"), r"config\.json is missing"),
    "no scheduler": (gone("diffusion/scheduler"), r"scheduler_config\.json is missing"),
    "no text tokenizer": (
        lambda folder: [gone(path.name)(folder) for path in folder.glob("tokenizer*")],
        r"^text_tokenizer \(.*/released\) holds no tokenizer: tokenizer\.json is missing; copy or download it again\.$",
    ),
    "whole numbers for weights": (
        tensors("model.safetensors", lambda s: s.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)})),
        r"ar: wrong type: model\.norm\.weight torch\.int64 instead of torch\.float32",
    ),
    "unknown activation": (
        config("config.json", hidden_act="foo"),
        r"released/config\.json: hidden_act \('foo'\): KeyError\('foo'\)$",
    ),
    "heads of none": (
        config("config.json", num_attention_heads=0),
        r"config\.json: num_attention_heads \(0\): ",
    ),
    "layers in words": (
        config(TRANSFORMER, num_layers="x"),
        r"transformer/config\.json: num_layers \('x'\): 'str' object cannot",
    ),
    "unknown blocks": (
        config(VAE, encoder_block_types="foo"),
        r"vae/config\.json: encoder_block_types \('foo'\): ",
    ),
    "factor in words": (config(VAE, shift_factor="x"), r"vae/config\.json: shift_factor \('x'\): could not convert"),
    "text tokenizer with code": (
        lambda folder: (
            config("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})(folder),
            text("code.py", "import os\nos.mkdir('executed')\n")(folder),
        ),
        "",
    ),
    "index without a map": (text(INDEX, "{}"), r"index\.json has no weight_map"),
    "index of a list": (text(INDEX, '{"weight_map": ["a"]}'), r"index\.json has no weight_map"),
    "index that points elsewhere": (
        text(INDEX, '{"weight_map": {"a": "../model.safetensors"}}'),
        r"weight_map names '\.\./model\.safetensors'; it must name safetensors files beside it",
    ),
    "index of a pickle": (text(INDEX, '{"weight_map": {"a": "pytorch_model.bin"}}'), "must name safetensors files"),
    "shard that lacks": (text(INDEX, '{"weight_map": {"a": "b.safetensors"}}'), r"b\.safetensors is missing"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released checkpoint and, beside it, our folder of the same model; no test changes them."""
    return written(released_pipeline(), tmp_path_factory.mktemp("sound") / "released")


@pytest.fixture
def released(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(sound, tmp_path / "released"))


@pytest.fixture
def ours(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(f"{sound}-ours", tmp_path / "ours"))


def refused(command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 2 and one line."""
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"blip3o {command[0]}: {told}" in printed.err


@pytest.mark.parametrize("harm", OURS)
def test_a_damaged_model_folder(ours: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, told = OURS[harm]
    damage(ours)
    with pytest.raises(ValueError, match=told) as error:
        Blip3oPipeline.from_pretrained(ours)
    refused(["info", "--model", str(ours)], str(error.value), capsys)
    assert [path.name for path in ours.parent.iterdir()] == ["ours"], "something was executed or left behind"


@pytest.mark.parametrize("harm", RELEASED)
def test_a_damaged_released_checkpoint(released: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, told = RELEASED[harm]
    damage(released)
    if harm == "text tokenizer with code":
        load_published(released)  # it has a plain tokenizer beside, and the code is left alone
    else:
        with pytest.raises(ValueError, match=told) as error:
            load_published(released)
        refused(["convert", str(released), str(released.parent / "deep/er/out")], str(error.value), capsys)
    assert [path.name for path in released.parent.iterdir()] == ["released"], "something was executed or left behind"


@pytest.mark.parametrize("harm", OURS)
def test_an_export_of_a_damaged_folder(ours: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, told = OURS[harm]
    damage(ours)
    with pytest.raises(ValueError, match=rf"{told}|config\.yaml: .*; the released code knows") as error:
        export_published(ours, ours.parent / "deep/er/out")
    refused(["export", str(ours), str(ours.parent / "deep/er/out")], str(error.value), capsys)
    assert [path.name for path in ours.parent.iterdir()] == ["ours"], "something was executed or left behind"


def test_an_export_of_what_the_released_code_does_not_know(ours: Path) -> None:
    resolved(AR + ".init_args.config.model_type", "llama")(ours)
    with pytest.raises(ValueError, match="ar is a llama; the released code knows qwen3 only"):
        export_published(ours, ours.parent / "out")
    resolved("model.init_args.template", None)(ours)
    with pytest.raises(ValueError, match=r"config\.yaml is no model configuration"):
        export_published(ours, ours.parent / "out")
    resolved("model.init_args.bridge", None)(ours)
    with pytest.raises(ValueError, match=r"config\.yaml describes no bridge"):
        export_published(ours, ours.parent / "out")
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]


def test_a_failing_disk_leaves_nothing(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("blip3o.checkpoints.export.save_file", full)
    assert main(["export", str(ours), str(ours.parent / "deep/er/out")]) == 1
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]
