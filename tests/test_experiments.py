"""Every YAML in experiments/ parses against the classes it names, and its first line is the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "experiments").rglob("*.yaml"))


def test_there_are_experiments() -> None:
    assert {"codec.yaml", "tokenizer.yaml", "joint.yaml", "mini.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_first_line_is_the_command(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# blip3o fit --config {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_model_and_data_build(path: Path) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_argument("--trainer", type=dict)
    text = path.read_text()
    config = parser.parse_string(text)
    if config.model.init_args.get("weights"):
        config.model.init_args.weights = None
    built = parser.instantiate(config)
    assert isinstance(built.model, LightningModule)
    assert isinstance(built.data, LightningDataModule)
