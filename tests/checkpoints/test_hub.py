"""What is fetched of a repository at the hub: what is read, and no more."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from blip3o.checkpoints import export_published, load_published, load_ta_tok, load_weights
from tests.published import released_pipeline, written

CHECKPOINT = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"),
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
}
DIFFUSERS = {"transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"}
WEIGHTS = {"transformer/diffusion_pytorch_model.safetensors"}
STORED = {
    *CHECKPOINT,
    *DIFFUSERS,
    *WEIGHTS,
    *("preprocessor_config.json", "config.yaml", "bridge.safetensors", "text_tokenizer/tokenizer.json", "README.md"),
    *("pytorch_model.bin", "ta_tok.pth", "optimizer.pt", "onnx/model.onnx", "transformer/diffusion_pytorch_model.bin"),
}
"""Files of a repository that has something of everything."""


class Hub:
    """Stands in for `snapshot_download`: notes what would be fetched, and gives a folder."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.fetched: dict[str, set[str]] = {}

    def __call__(self, repository: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None) -> str:
        self.fetched[repository] = {
            name
            for name in STORED
            if any(fnmatch(name, pattern) for pattern in allow_patterns)
            and not any(fnmatch(name, pattern) for pattern in ignore_patterns or ())
        }
        return str(self.folders[repository])


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(released_pipeline(), tmp_path_factory.mktemp("hub") / "released")


@pytest.fixture
def hub(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folders = {
        "some/checkpoint": released,
        "some/diffusion": released / "diffusion",
        "some/vision": released / "vision",
        "some/model": Path(f"{released}-ours"),
        "some/empty": tmp_path,
    }
    hub = Hub(folders)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    return hub


def test_of_a_checkpoint_its_configs_text_tokenizer_and_weights_and_of_what_it_names_configs_alone(hub: Hub) -> None:
    load_published("some/checkpoint", diffusion="some/diffusion", vision="some/vision")
    beside = {"preprocessor_config.json", "text_tokenizer/tokenizer.json"}
    assert hub.fetched["some/checkpoint"] == CHECKPOINT | DIFFUSERS | beside | {"bridge.safetensors"}
    assert hub.fetched["some/diffusion"] == DIFFUSERS
    assert hub.fetched["some/vision"] == {"config.json", "preprocessor_config.json"}


def test_of_a_model_folder_what_was_saved(hub: Hub, tmp_path: Path) -> None:
    export_published("some/model", tmp_path / "out")
    weights = {name for name in STORED if name.endswith(".safetensors")}
    assert hub.fetched == {"some/model": {"config.yaml", "text_tokenizer/tokenizer.json", *weights}}


@pytest.mark.parametrize(
    ("call", "fetched"),
    [
        (lambda: load_ta_tok("some/empty"), {"ta_tok.pth"}),
        (
            lambda: load_weights(released_pipeline().model, "diffusion.denoiser", "some/empty/transformer"),
            {"transformer/config.json", *WEIGHTS},
        ),
        (
            lambda: load_weights(released_pipeline().model, "ar", "some/empty"),
            (CHECKPOINT - {"merges.txt"}) | {"bridge.safetensors", "preprocessor_config.json"},
        ),
    ],
    ids=["image tokenizer", "subfolder", "language model"],
)
def test_of_other_repositories_what_is_asked_for(hub: Hub, call: Callable[[], Any], fetched: set[str]) -> None:
    with pytest.raises((ValueError, OSError)):  # nothing is there
        call()
    assert hub.fetched == {"some/empty": fetched}


def test_a_folder_that_is_not_there_yet_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"weights \(runs/first/edit/model\) is no folder; write it first"):
        load_weights(released_pipeline().model, "ar", "runs/first/edit/model")
