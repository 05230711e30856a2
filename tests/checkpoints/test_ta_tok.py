"""TA-Tok's released file: the released code's numbers, no more unpickled than it needs, and honest errors."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.checkpoints import load_published, load_ta_tok
from blip3o.cli import main
from blip3o.tokenizers import TATok
from tests.fixtures import FOLDER, described, expected, needs_fixtures, weights
from tests.published import VISION, released_pipeline, written
from tests.tokenizers.test_ta_tok import tiny_ta_tok

PREFIX = "model.vision_tower.vision_tower."
# What the released tokenizer's own scaling layer does to images in [0, 1]; the released model replaces it.
SCALING = {"scale_layer.shift": torch.full((1, 3, 1, 1), 0.5), "scale_layer.scale": torch.full((1, 3, 1, 1), 0.5)}


class EasyDict(dict):  # type: ignore[type-arg]
    """The container in which the released file keeps its arguments: every item is an attribute too."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        for key, value in values.items():
            setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        value = EasyDict(value) if isinstance(value, dict) else value
        super().__setattr__(key, value)
        self[key] = value


EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"


def args(**overrides: Any) -> dict[str, Any]:
    """Arguments of the released class, of `tiny_ta_tok`."""
    regularizer = {"name": "simvq", "args": {"codebook_size": 32, "l2_normalized": True, "stochastic_temperature": 0.1}}
    bottleneck = {"name": "bottleneck", "args": {"bottleneck_dim": 6, "norm": "none", "regularizer": regularizer}}
    values = {"bottleneck": bottleneck, "bottleneck_token_num": 16, "input_size": 28, "teacher": "elsewhere/siglip"}
    return values | {"pool_scale": 1, "decoder_depth": 1, "select_layer_id": -2} | overrides


def theirs(tokenizer: TATok) -> dict[str, Tensor]:
    """A tokenizer's tensors under the released names."""
    from blip3o.checkpoints.names import to_theirs

    state = {str(to_theirs("tokenizer", key)): value for key, value in tokenizer.state_dict().items()}
    return {key.removeprefix(PREFIX): value for key, value in state.items()} | SCALING


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    """A folder with the SigLIP config of `tiny_ta_tok`."""
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision/config.json").write_text(json.dumps(VISION))
    return tmp_path / "vision"


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@needs_fixtures
@pytest.mark.parametrize("name", ["t2i", "edit"])
@torch.no_grad()
def test_parity_of_the_tokenizers_own_file(tmp_path: Path, name: str) -> None:
    content = {"model": {"args": described(name, "meta.json")["tatok_args"], "sd": weights(name, PREFIX) | SCALING}}
    tokenizer = load_ta_tok(saved(content, tmp_path / "ta_tok.pth"), vision=FOLDER / name / "teacher")
    numbers = expected(name)
    pixels = numbers["pixel_values"]
    tokens = tokenizer.encode(pixels)
    assert torch.equal(tokens.ids, numbers["tok.tokens"])
    assert torch.equal(tokenizer.encode(pixels, scale=2).ids, numbers["tok.tokens_pool2"])
    for actual, key in (
        (tokenizer.task_features(pixels), "tok.features"),
        (tokenizer.quantizer.projected(), "tok.codebook"),
        (tokenizer.decode(tokens.ids), "tok.decoded"),
    ):
        torch.testing.assert_close(actual, numbers[key], rtol=0, atol=1e-4)


@needs_fixtures
def test_parity_of_a_checkpoint_whose_tokenizer_lies_in_its_own_file(tmp_path: Path) -> None:
    folder, numbers = FOLDER / "t2i", expected("t2i")
    checkpoint = Path(shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint"))
    rest = {key: value for key, value in weights("t2i", "").items() if not key.startswith(PREFIX)}
    save_file(rest, checkpoint / "model.safetensors")
    content = {"model": {"args": described("t2i", "meta.json")["tatok_args"], "sd": weights("t2i", PREFIX) | SCALING}}
    file = saved(content, tmp_path / "ta_tok.pth")
    pipe = load_published(checkpoint, diffusion=folder / "sana", vision=folder / "teacher", tokenizer=file)
    whole = load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(pipe.model.state_dict()[key], tensor), key
    assert torch.equal(pipe.model.tokenizer.encode(numbers["pixel_values"]).ids, numbers["tok.tokens"])


@pytest.mark.parametrize("layout", ["released", "state_dict", "model", "tensors alone"])
def test_sizes_are_read_off_the_tensors_and_the_rest_off_the_arguments(
    tmp_path: Path, vision: Path, layout: str
) -> None:
    original = tiny_ta_tok(codebook_size=40, bottleneck_dim=8, decoder_depth=2, select_layer=-3)
    tensors, arguments = theirs(original), args(select_layer_id=-3)
    content = {
        "released": {"model": {"name": "ta_tok", "args": arguments, "sd": OrderedDict(tensors)}, "epoch": 3},
        "state_dict": {"args": arguments, "state_dict": tensors},
        "model": {"args": arguments, "model": tensors},
        "tensors alone": tensors,
    }[layout]
    loaded = load_ta_tok(saved(content, tmp_path / "ta_tok.pth"), vision=vision)
    assert not loaded.training
    assert loaded.init_args["codebook_size"] == 40 and loaded.init_args["bottleneck_dim"] == 8
    assert loaded.init_args["decoder_depth"] == 2
    if layout != "tensors alone":
        assert loaded.select_layer == -3 and loaded.init_args["temperature"] == 0.1
    for key, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_a_folder_with_the_file_and_its_teacher_will_do_and_a_teachers_tensors_are_passed_over(
    tmp_path: Path, vision: Path
) -> None:
    tensors = theirs(tiny_ta_tok()) | {"teacher.weight": torch.ones(2)}
    saved({"model": {"args": args(teacher=str(vision)), "sd": tensors}}, tmp_path / "ta_tok.pth")
    assert torch.equal(load_ta_tok(tmp_path).encode_task[0].weight, tiny_ta_tok().encode_task[0].weight)


@pytest.fixture
def easydict(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that name, so that its class can be pickled."""
    module = ModuleType("easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    return module


def test_the_released_files_container_is_read_without_its_package(
    tmp_path: Path, vision: Path, easydict: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"model": EasyDict({"args": args(select_layer_id=-1), "sd": theirs(tiny_ta_tok())})}
    path = saved(content, tmp_path / "ta_tok.pth")
    assert b"easydict" in path.read_bytes()
    monkeypatch.delitem(sys.modules, "easydict")
    loaded = load_ta_tok(path, vision=vision)
    assert loaded.select_layer == -1 and loaded.init_args["temperature"] == 0.1
    assert "easydict" not in sys.modules
    with pytest.raises(pickle.UnpicklingError, match=r"easydict\.EasyDict"):
        torch.load(path, weights_only=True)  # the permission was for that one file


class Bomb:
    """Executes something where a pickle is trusted."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, vision: Path, zipped: bool) -> None:
    import os

    victim = tmp_path / "executed"
    for bomb, told in (
        (Bomb(os.mkdir, str(victim)), r"posix\.mkdir|nt\.mkdir"),
        (Bomb(exec, f"open({str(victim)!r}, 'w')"), "exec"),
        (Bomb(Path.touch, victim), r"getattr|pathlib"),
    ):
        content = {"model": {"args": args(extra=bomb), "sd": theirs(tiny_ta_tok())}}
        path = tmp_path / "ta_tok.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=rf"ta_tok\.pth holds \S*({told}).*nothing of it was executed"):
            load_ta_tok(path, vision=vision)
        assert not victim.exists()
        torch.load(path, weights_only=False)
        assert victim.exists(), "the bomb is a dud, which proves nothing"
        victim.rmdir() if victim.is_dir() else victim.unlink()


def harmed(change: Callable[[dict[str, Tensor]], object], **overrides: Any) -> Callable[[Path], object]:
    """Edits the tensors or the arguments of a file."""

    def write(path: Path) -> None:
        tensors = theirs(tiny_ta_tok())
        change(tensors)
        saved({"model": {"args": args(**overrides), "sd": tensors}}, path)

    return write


def regularized(**values: Any) -> dict[str, Any]:
    bottleneck = args()["bottleneck"]
    return {"args": {**bottleneck["args"], "regularizer": bottleneck["args"]["regularizer"] | values}}


NOTHING = harmed(lambda tensors: None)
GAIN = "encoder.post_layernorm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (harmed(lambda t: t.pop(GAIN)), r"ta_tok\.pth does not fit .*missing: encoder\.post_layernorm\.weight"),
    "renamed": (harmed(lambda t: t.update(a=t.pop(GAIN))), "ta_tok.pth holds tensors that TA-Tok does not know: a"),
    "unexpected": (
        harmed(lambda t: t.update({"decoder.vision_model.more.weight": torch.ones(1)})),
        r"unexpected: decoder\.vision_model\.more\.weight",
    ),
    "mis-shaped": (
        harmed(lambda t: t.update({GAIN: torch.ones(25)})),
        r"mis-shaped: encoder\.post_layernorm\.weight \(25,\) instead of \(24,\)",
    ),
    "no codebook": (
        harmed(lambda t: t.pop("bottleneck.regularizer.embedding.weight")),
        "ta_tok.pth holds no codebook",
    ),
    "other image size": (harmed(lambda t: None, input_size=56), r"input_size \(56\) is not the image_size"),
    "other layer": (harmed(lambda t: None, select_layer_id=-9), r"config\.json: select_layer \(-9\) must lie in -4"),
    "layer of words": (harmed(lambda t: None, select_layer_id="last"), r"select_layer_id \('last'\) must be a whole"),
    "other quantizer": (harmed(lambda t: None, bottleneck=regularized(name="vq")), r"must be a simvq"),
    "other distance": (harmed(lambda t: None, bottleneck=regularized(args={"l2_normalized": False})), "l2_normalized"),
    "no tensors": (lambda path: saved({"model": {"args": args(), "sd": {}}}, path), "holds no tensors under model/sd"),
    "a list": (lambda path: saved([torch.ones(2)], path), r"ta_tok\.pth holds a list"),
    "arguments of words": (
        lambda path: saved({"model": {"args": "none", "sd": {"a": torch.ones(1)}}}, path),
        "with their args beside",
    ),
    "truncated": (lambda path: (NOTHING(path), cut(path, 0.5)), r"ta_tok\.pth can not be read"),
    "empty": (lambda path: path.write_bytes(b""), r"ta_tok\.pth can not be read"),
    "text": (lambda path: path.write_text("<html>not found</html>"), r"ta_tok\.pth can not be read"),
    "no file": (lambda path: None, r"ta_tok\.pth is missing|is unknown"),
}


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_named(tmp_path: Path, vision: Path, damage: str) -> None:
    harm, told = DAMAGE[damage]
    harm(tmp_path / "ta_tok.pth")
    with pytest.raises(ValueError, match=told):
        load_ta_tok(tmp_path / "ta_tok.pth", vision=vision)


def test_a_towers_config_of_another_kind_is_named(tmp_path: Path, vision: Path) -> None:
    NOTHING(tmp_path / "ta_tok.pth")
    (vision / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"vision/config\.json: model_type \('clip'\) must be siglip"):
        load_ta_tok(tmp_path / "ta_tok.pth", vision=vision)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A released checkpoint without its tokenizer's tensors, and these beside it as `ta_tok.pth`."""
    from safetensors.torch import load_file

    checkpoint = written(released_pipeline(), tmp_path / "released")
    state = load_file(checkpoint / "model.safetensors")
    tower = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    save_file({k: v for k, v in state.items() if not k.startswith(PREFIX)}, checkpoint / "model.safetensors")
    saved({"model": {"args": args(), "sd": tower | SCALING}}, tmp_path / "ta_tok.pth")
    return checkpoint


def test_convert_takes_the_tokenizers_own_file(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours"
    assert main(["convert", str(bare), str(out)]) == 2
    assert (
        "holds no image tokenizer, and its mm_vision_tower (ta_tok) is no file; pass tokenizer"
        in capsys.readouterr().err
    )
    assert not out.exists()
    assert main(["convert", str(bare), str(out), "--tokenizer", str(tmp_path / "ta_tok.pth")]) == 0
    found = Blip3oPipeline.from_pretrained(out).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in released_pipeline().model.state_dict().items())


def test_the_file_may_be_the_one_that_the_config_names(bare: Path, tmp_path: Path) -> None:
    config = json.loads((bare / "config.json").read_text())
    for named in (str(tmp_path / "ta_tok.pth"), "../ta_tok.pth"):
        (bare / "config.json").write_text(json.dumps(config | {"mm_vision_tower": named}))
        assert isinstance(load_published(bare).model.tokenizer, TATok)
    with pytest.raises(ValueError, match=r"tokenizer \(nonesuch\.pth\) is unknown; pass the file"):
        load_published(bare, tokenizer="nonesuch.pth")
    with pytest.raises(ValueError, match=r"holds an image tokenizer of its own; leave tokenizer"):
        load_published(written(released_pipeline(), tmp_path / "whole"), tokenizer=tmp_path / "ta_tok.pth")
