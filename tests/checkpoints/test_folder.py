"""Model folders: exact round trips, whole or not at all, honest errors, and no code from elsewhere."""

from __future__ import annotations

import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import blip3o.checkpoints.folder
from blip3o.bridge import MLPBridge
from blip3o.checkpoints import (
    CONFIG_NAME,
    check_model_folder,
    instantiate,
    load_model,
    load_part,
    save_model,
    save_part,
)
from blip3o.checkpoints.tensors import check_part
from blip3o.model import Blip3oNext
from tests.tiny import PLAIN, generators, perturbed, tiny_ar, tiny_head, tiny_model, tiny_tokenizer

PARTS = ("tokenizer", "ar", "bridge", "diffusion")
FILES = {CONFIG_NAME, "text_tokenizer", *(f"{part}.safetensors" for part in PARTS)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that no test changes."""
    return save_model(tiny_model(), tmp_path_factory.mktemp("saved") / "model", generation={"top_k": 7})


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    model, generation = load_model(saved)
    return save_model(model, tmp_path / "model", generation=generation)


def same(first: Blip3oNext, second: Blip3oNext) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def edit_config(folder: Path, **parts: Any) -> None:
    """Replaces parts in a folder's config.yaml."""
    stored = yaml.safe_load((folder / CONFIG_NAME).read_text())
    stored["model"]["init_args"] |= parts
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(stored))


def test_a_saved_model_is_loaded_exactly(saved: Path) -> None:
    model, (again, generation) = tiny_model(), load_model(saved)
    assert {path.name for path in saved.iterdir()} == FILES
    assert same(model, again)
    assert generation == {"top_k": 7}
    assert not again.training
    expected, actual = (
        one.generate(["a red circle"], num_inference_steps=2, generator=generators(1)) for one in (model, again)
    )
    assert torch.equal(expected.tokens.ids, actual.tokens.ids) and torch.equal(expected.latents, actual.latents)


def test_a_folder_may_be_moved_and_saved_again(saved: Path, tmp_path: Path) -> None:
    once = save_model(load_model(saved)[0], tmp_path / "once")
    moved = once.rename(tmp_path / "moved")
    assert same(load_model(moved)[0], tiny_model())
    assert (
        yaml.safe_load((moved / CONFIG_NAME).read_text())["model"]
        == (yaml.safe_load((saved / CONFIG_NAME).read_text())["model"])
    )


def test_a_tied_head_and_a_partial_bridge_survive(tmp_path: Path) -> None:
    bridge = partial(MLPBridge, depth=3)
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(tie_word_embeddings=True), bridge, tiny_head(), PLAIN)
    perturbed(model)
    again, _ = load_model(save_model(model, tmp_path / "model"))
    assert same(model, again)
    assert again.ar.head is again.ar.lm.get_input_embeddings().weight
    assert again.bridge.init_args["depth"] == 3


def test_half_precision_halves_the_files_and_loads_in_float32(saved: Path, tmp_path: Path) -> None:
    model = tiny_model()
    half = save_model(model, tmp_path / "half", dtype=torch.float16)
    for part in PARTS:
        stored = load_file(half / f"{part}.safetensors")
        assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    sizes = [sum(path.stat().st_size for path in each.glob("*.safetensors")) for each in (half, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    again, _ = load_model(half)
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].half().float()), key
    assert next(model.parameters()).dtype == torch.float32, "saving changed the model"


def test_missing_unexpected_and_mis_shaped_weights_are_all_listed(folder: Path) -> None:
    path = folder / "bridge.safetensors"
    state = load_file(path)
    del state["layers.0.bias"]
    state["layers.2.weight"] = state["layers.2.weight"][:5].contiguous()
    state["layers.9.weight"] = torch.zeros(2)
    save_file(state, path)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    told = str(error.value)
    assert "bridge.safetensors does not fit MLPBridge" in told
    assert "missing: layers.0.bias" in told
    assert "unexpected: layers.9.weight" in told
    assert "mis-shaped: layers.2.weight (5, 24) instead of (24, 24)" in told


def test_a_part_that_does_not_fit_is_left_as_it_was(tmp_path: Path) -> None:
    save_part(MLPBridge(4, 6), tmp_path / "part.safetensors")
    bridge = MLPBridge(4, 5)
    before = {key: value.clone() for key, value in bridge.state_dict().items()}
    with pytest.raises(ValueError, match="mis-shaped"):
        load_part(bridge, tmp_path / "part.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in bridge.state_dict().items())


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["empty", "half a header size", "half a header", "a byte short"])
def test_a_damaged_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "diffusion.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"diffusion\.safetensors is damaged"):
        load_model(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_lacks_is_named(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=name):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "model: 3", "- model", "model: {init_args: {}}", "{", "generation: {}"])
def test_a_config_of_something_else_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError, match="is no model configuration"):
        load_model(folder)


def test_a_config_that_does_not_fit_its_classes_is_refused() -> None:
    config = tiny_model().config()
    config["init_args"]["bridge"]["init_args"]["breadth"] = 3
    with pytest.raises(ValueError, match="breadth"):
        instantiate(config)
    config = tiny_model().config()
    config["init_args"]["bridge"]["init_arguments"] = {}
    with pytest.raises(ValueError, match="init_arguments"):
        instantiate(config)
    for wrong in ("blip3o.bridge.mlp.MLPRidge", "blip3o.structures.ARStates", "torch.load", "blip3o.bridge", 3):
        config = tiny_model().config()
        config["init_args"]["bridge"]["class_path"] = wrong
        with pytest.raises(ValueError, match="does not fit its classes"):
            instantiate(config)
    with pytest.raises(ValueError, match="must describe a Blip3oNext"):
        instantiate(tiny_head().config())


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module outside the trusted packages, importable, not imported."""
    package = tmp_path / "path"
    package.mkdir()
    (package / "foreign_bridge.py").write_text(
        "from blip3o.bridge import MLPBridge\nclass Mine(MLPBridge):\n    pass\n"
    )
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "foreign_bridge", raising=False)
    return "foreign_bridge.Mine"


def test_classes_from_elsewhere_are_imported_only_when_trusted(folder: Path, foreign: str) -> None:
    edit_config(folder, bridge={"class_path": foreign, "init_args": {"depth": 2}})
    with pytest.raises(ValueError, match=r"\['foreign_bridge\.Mine'\]; pass trust_remote_code=True"):
        load_model(folder)
    assert "foreign_bridge" not in sys.modules, "refused, but imported all the same"
    model, _ = load_model(folder, trust_remote_code=True)
    assert type(model.bridge).__module__ == "foreign_bridge"
    again = save_model(model, folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(again)


@pytest.mark.parametrize("disguise", ["{}", "{{class_path: {}}}", "{} # harmless", "FILE"])
def test_a_string_is_never_imported_or_read_in_place_of_a_class(
    folder: Path, foreign: str, disguise: str, tmp_path: Path
) -> None:
    text = disguise.format(foreign)
    if disguise == "FILE":
        (tmp_path / "bridge.yaml").write_text(f"class_path: {foreign}\n")
        text = str(tmp_path / "bridge.yaml")
    edit_config(folder, bridge=text)
    with pytest.raises(ValueError):
        load_model(folder)
    edit_config(folder, bridge={"class_path": "blip3o.bridge.mlp.MLPBridge"})
    stored = yaml.safe_load((folder / CONFIG_NAME).read_text())
    stored["model"]["init_args"]["tokenizer"]["init_args"]["quantizer"] = text
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError):
        load_model(folder)
    assert "foreign_bridge" not in sys.modules


def test_a_failed_save_leaves_the_old_model_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: torch.nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
        if path.name == "diffusion.safetensors":
            raise OSError("disk full")
        save_part(part, path, dtype)

    monkeypatch.setattr(blip3o.checkpoints.folder, "save_part", fail)
    other = tiny_model(seed=1)
    with pytest.raises(OSError, match="disk full"):
        save_model(other, folder)
    with pytest.raises(OSError, match="disk full"):
        save_model(other, folder.parent / "new")
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "something was left behind"
    assert same(load_model(folder)[0], tiny_model())


def test_a_model_is_replaced_whole(folder: Path) -> None:
    (folder / "old.safetensors").write_text("of the old model")
    other = tiny_model(seed=1)
    assert not same(other, tiny_model())
    save_model(other, folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert same(load_model(folder)[0], other)


def test_folders_of_something_else_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for beside in (False, True):  # the log folder of a run has a config.yaml too
        if beside:
            (tmp_path / CONFIG_NAME).write_text("trainer: {}")
        with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no model's"):
            save_model(tiny_model(), tmp_path)
    (tmp_path / CONFIG_NAME).unlink()
    with pytest.raises(ValueError, match="is a file"):
        save_model(tiny_model(), tmp_path / "thesis.tex")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("thesis.tex", "years of work")]


def test_a_path_that_can_not_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").write_text("")
    with pytest.raises(ValueError, match=r"folder \(.*notes/deep/er\) lies below .*/notes, which is no folder"):
        check_model_folder(tmp_path / "notes/deep/er")
    asked = []

    def access(path: Path, mode: int) -> bool:  # root may write anywhere
        asked.append((Path(path), mode))
        return False

    monkeypatch.setattr("os.access", access)
    with pytest.raises(ValueError, match=r"deep/er\) can not be made: .* is not writable; choose another path"):
        check_model_folder(tmp_path / "deep/er")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(("umask", "file", "inner"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_others_may_read_a_model_as_far_as_the_umask_lets_them(
    tmp_path: Path, umask: int, file: int, inner: int
) -> None:
    before = os.umask(umask)
    try:
        folder = save_model(tiny_model(), tmp_path / "model")
        save_part(MLPBridge(4, 6), tmp_path / "part.safetensors")
        assert os.umask(umask) == umask, "saving changed the umask"
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*"), tmp_path / "part.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == (inner if path.is_dir() else file), path


def test_whole_numbers_never_fill_floating_tensors_nor_the_reverse(tmp_path: Path) -> None:
    part = torch.nn.BatchNorm1d(3)
    state = part.state_dict() | {"weight": torch.ones(3, dtype=torch.int64), "num_batches_tracked": torch.tensor(2.0)}
    save_file({key: value for key, value in state.items() if key != "bias"}, tmp_path / "part.safetensors")
    told = (
        r"missing: bias; wrong type: num_batches_tracked torch\.float32 instead of torch\.int64, "
        r"weight torch\.int64 instead of torch\.float32\.$"
    )
    for check in (load_part, check_part):
        with pytest.raises(ValueError, match=told):
            check(part, tmp_path / "part.safetensors")


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/er/model"):
        assert same(load_model(save_model(tiny_model(), tmp_path / name))[0], tiny_model())
