"""Ablations of models that train on encoded rows: the world is the folder's, and other encoders are told early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from blip3o.ablation.check import check_plan
from blip3o.ablation.files import write_json
from blip3o.ablation.plan import Plan, read_plan
from blip3o.ablation.run import do
from blip3o.ablation.runs import SETTINGS, list_runs
from blip3o.training.encode import encode_data
from tests.ablation.plans import MINI, write_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of mini.yaml, and two of validation."""
    place = tmp_path_factory.mktemp("encoded")
    config = yaml.safe_load(MINI.read_text())
    config["data"]["init_args"] |= {"batch_size": 4, "num_val": 2, "num_prompts": 2}
    (place / "mini.yaml").write_text(yaml.safe_dump(config))
    encode_data(place / "mini.yaml", place / "data", num_rows=8)
    return place / "data"


def plan(tmp_path: Path, folder: Path, **changes: Any) -> Plan:
    """Two bridges on encoded rows."""
    data = {
        "class_path": "blip3o.data.encoded.EncodedDataModule",
        "init_args": {"folder": str(folder), "batch_size": 4},
    }
    overrides = {"data": data, "trainer.val_check_interval": 3}
    return read_plan(write_plan(tmp_path, overrides=overrides, **changes))


def test_a_run_trains_and_is_scored_in_the_world_of_the_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan(tmp_path, folder)
    check_plan(made)
    run = list_runs(made)[0]
    assert run.settings["metrics"]["shapes"]["init_args"]["world"] == "shapes-mini"
    assert run.settings["config"]["data"]["init_args"]["seed"] == 0
    write_json(tmp_path / "run" / SETTINGS, run.settings)
    result = do(tmp_path / "run")
    assert result["steps"] == 3 and "shapes/overall" in result["scores"]
    assert {"train/flow", "val/flow", "val/cross_entropy", "val/score"} <= result["losses"].keys()
    assert result["timings"]["train_images_per_second"] > 0 and len(result["samples"]) == 6


def test_a_variant_with_another_tokenizer_is_refused_before_anything_trains(tmp_path: Path, folder: Path) -> None:
    levels = {"model.model.tokenizer.quantizer.levels": [8, 8]}
    made = plan(tmp_path, folder, axes={"tokenizer": {"four": {}, "eight": levels}})
    with pytest.raises(ValueError, match=r"variant tokenizer: eight can not be built: .* by another tokenizer"):
        check_plan(made)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder \(.*nowhere\) does not exist"):
        check_plan(plan(tmp_path, tmp_path / "nowhere"))
