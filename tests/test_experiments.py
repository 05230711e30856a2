"""Every YAML in experiments/ parses against the classes it names, and its first line is the command that runs it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from blip3o.ablation.check import check_plan
from blip3o.ablation.plan import Plan, read_plan

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "experiments").rglob("*.yaml"))
PLANS = [path for path in ALL if "axes" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in ALL if path not in PLANS]


def test_there_are_experiments() -> None:
    assert {"codec.yaml", "tokenizer.yaml", "joint.yaml", "mini.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_first_line_is_the_command(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# blip3o fit --config {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_every_variant_of_a_plan_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = path.relative_to(ROOT)
    assert path.read_text().startswith(f"# blip3o ablate {name} --output_dir runs/{name.parent.name}/{path.stem}")
    check_plan(_without_missing_weights(_with_own_data(read_plan(name))))


def _with_own_data(plan: Plan) -> Plan:
    """The plan on the live data of its base, where it names encoded rows that a checkout does not hold."""
    folder = plan.base["data"].get("init_args", {}).get("folder")
    if folder is None or Path(folder).exists():
        return plan
    assert f"--output_dir {folder}" in plan.source.path.read_text(), "the command that encodes them stands in the plan"
    return replace(plan, base=plan.base | {"data": yaml.safe_load(plan.base_path.read_text())["data"]})


def _without_missing_weights(plan: Plan) -> Plan:
    """The plan without the weights that a checkout does not hold; the plan names the experiments that make them."""

    def kept(weights: dict[str, str | None]) -> dict[str, str | None]:
        missing = {name: file for name, file in weights.items() if file is not None and not Path(file).exists()}
        for file in missing.values():
            makers = [path for path in CONFIGS if f": {file}}}" in path.read_text()]
            assert any(f"fit --config {path.relative_to(ROOT)}" in plan.source.path.read_text() for path in makers)
        return weights | dict.fromkeys(missing)

    def changed(changes: dict[str, Any]) -> dict[str, Any]:
        return {key: kept(value) if key == "model.weights" else value for key, value in changes.items()}

    base = copy.deepcopy(plan.base)
    arguments = base["model"]["init_args"]
    if arguments.get("weights"):
        arguments["weights"] = kept(arguments["weights"])
    axes = {axis: {name: changed(one) for name, one in variants.items()} for axis, variants in plan.axes.items()}
    return replace(plan, base=base, axes=axes)


def test_missing_weights_are_left_out_and_the_plan_names_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkout = _without_missing_weights(read_plan(ROOT / "experiments/claims/tokenizer_and_ar.yaml"))
    assert set(checkout.base["model"]["init_args"]["weights"].values()) == {None}
    assert checkout.axes["tokenizer"]["lfq"]["model.weights"] == {"tokenizer": None}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_model_and_data_build(path: Path) -> None:
    """The published ones at full size on the meta device, so that they take no memory."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_argument("--trainer", type=dict)
    text = path.read_text()
    config = parser.parse_string(text)
    if config.model.init_args.get("weights"):
        config.model.init_args.weights = None
    with torch.device("meta" if path.parent.name == "published" else "cpu"):
        built = parser.instantiate(config)
    assert isinstance(built.model, LightningModule)
    assert isinstance(built.data, LightningDataModule)
