"""Encoding pictures of finite sources: every row once or as many as asked for, and edits are refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip3o.data.encoded import EncodedDataModule
from blip3o.training.encode import encode_data

MINI = Path(__file__).parents[2] / "experiments/shapes/mini.yaml"


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def pictures(**source: Any) -> dict[str, Any]:
    """mini.yaml on numbered pictures of two sources."""
    arguments = [{"lengths": [5, 4], "bad": [3]}, {"lengths": [3], "prefix": "b", **source}]
    entries: list[dict[str, Any]] = [
        {"source": {"class_path": "tests.data.pictures.Numbers", "init_args": one}} for one in arguments
    ]
    for entry in entries:
        entry["limits"] = {"max_failures": 0.5}
    data = {"sources": entries, "val_sources": entries[:1], "num_val": 2, "image_size": 32, "batch_size": 4}
    return yaml.safe_load(MINI.read_text()) | {
        "data": {"class_path": "blip3o.data.images.ImageDataModule", "init_args": data}
    }


def test_finite_sources_are_encoded_once_each_row(tmp_path: Path) -> None:
    index = encode_data(write(tmp_path, pictures()), tmp_path / "data", shard_size=4)
    assert index.num_rows == {"train": 8 + 3, "val": 2, "test": 2} and index.world is None
    batches = list(islice(EncodedDataModule(folder=tmp_path / "data", batch_size=4).train_dataloader(), 3))
    keys = [key for batch in batches for key in batch["key"]][:11]
    assert sorted(keys) == sorted([f"key {i}" for i in range(9) if i != 3] + [f"key {i}" for i in range(3)])
    assert batches[0]["num_references"].tolist() == [0] * 4
    mixed = encode_data(write(tmp_path, pictures()), tmp_path / "mixed", num_rows=30)
    assert mixed.num_rows["train"] == 30


def test_edits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the data holds edits, whose reference images are not encoded"):
        encode_data(write(tmp_path, pictures(edits=1)), tmp_path / "data")
