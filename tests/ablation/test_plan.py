"""Plans: what they make of the base, and that a mistake is one line with file, line and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip3o.ablation.check import check_plan
from blip3o.ablation.command import keep_plan, left_behind
from blip3o.ablation.files import write_json
from blip3o.ablation.plan import read_plan
from blip3o.ablation.runs import RESULT, list_runs, redirected
from tests.ablation.plans import MINI, plan_values, write_plan


def depths(runs: list[Any]) -> list[object]:
    bridges = [run.settings["config"]["model"]["init_args"]["model"]["init_args"]["bridge"] for run in runs]
    return [bridge.get("init_args", {}).get("depth") for bridge in bridges]


def test_a_paired_plan_gives_one_seed_to_weights_data_and_noise(tmp_path: Path) -> None:
    runs = list_runs(read_plan(write_plan(tmp_path, seeds=[3, 4])))
    assert [(run.variant, run.seed) for run in runs] == [("two", 3), ("one", 3), ("two", 4), ("one", 4)]
    assert depths(runs) == [None, 1, None, 1]
    for run in runs:
        config = run.settings["config"]
        seeds = [config["seed_everything"], config["model"]["init_args"]["seed"], config["data"]["init_args"]["seed"]]
        assert seeds == [run.seed] * 3
    assert len({run.id for run in runs}) == 4


def test_an_unpaired_plan_gives_every_run_its_own_seed(tmp_path: Path) -> None:
    runs = list_runs(read_plan(write_plan(tmp_path, seeds=[3, 4], reference_seeds=[3, 5], pairing=False)))
    assert [(run.variant, run.seed) for run in runs][4:] == [("two", 5)]
    assert len({run.settings["config"]["model"]["init_args"]["seed"] for run in runs}) == 5


def test_a_changed_plan_has_other_runs(tmp_path: Path) -> None:
    ids = [list_runs(read_plan(write_plan(tmp_path, **more)))[0].id for more in ({}, {}, {"budget": {"max_steps": 4}})]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("design", "more", "expected"),
    [
        ("one_factor", {}, ["a+x", "b+x", "a+y", "a+z"]),
        ("grid", {}, ["a+x", "a+y", "a+z", "b+x", "b+y", "b+z"]),
        ("list", {"combinations": [{"p": "b", "q": "z"}, {"q": "y"}]}, ["a+x", "b+z", "a+y"]),
    ],
)
def test_designs(tmp_path: Path, design: str, more: dict[str, Any], expected: list[str]) -> None:
    axes = {"p": {"a": {}, "b": {"trainer.max_steps": 9}}, "q": {"x": {}, "y": {}, "z": {}}}
    runs = list_runs(read_plan(write_plan(tmp_path, axes=axes, design=design, **more)))
    assert [run.variant for run in runs] == expected


def test_a_run_writes_in_its_own_folder_alone(tmp_path: Path) -> None:
    config = redirected(list_runs(read_plan(write_plan(tmp_path)))[0].settings["config"], tmp_path / "run")
    text = yaml.safe_dump(config)
    assert "runs/shapes" not in text and str(tmp_path / "run/checkpoints") in text
    assert "EMA" in text and "ExportModel" not in text and "WriteImages" not in text


def line_of(path: Path, word: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), start=1) if word in line)


def bridge(values: dict[str, Any]) -> dict[str, Any]:
    variant: dict[str, Any] = values["axes"]["bridge"]["one"]
    return variant


Change = Callable[[dict[str, Any]], object]
MISTAKES: dict[str, tuple[Change, str, str]] = {
    "unknown key": (lambda p: p.update(sedes=[0]), "sedes", "unknown key 'sedes'; did you mean seeds?"),
    "unknown key below": (
        lambda p: p["evaluation"].update(num_caption=3),
        "num_caption: 3",
        "did you mean num_captions?",
    ),
    "no seeds": (lambda p: p.pop("seeds"), "base", "seeds is missing or empty; list at least two"),
    "empty seeds": (lambda p: p.update(seeds=[]), "seeds", "seeds is missing or empty"),
    "repeated seed": (lambda p: p.update(seeds=[7, 8, 7]), "- 8", "seed 7 is listed twice"),
    "odd seed": (lambda p: p.update(seeds=["x"]), "- x", "seed 'x' must be a whole number"),
    "no margin": (lambda p: p.pop("margin"), "base", "margin is missing"),
    "margin asked for": (lambda p: p.pop("margin") and p.update(equivalence=True), "equivalence", "`margin: 0.05`"),
    "negative margin": (lambda p: p.update(margin=-0.1), "margin", "margin (-0.1) must be above 0"),
    "no axes": (lambda p: p.pop("axes"), "base", "axes is missing"),
    "one variant": (lambda p: p["axes"]["bridge"].pop("two"), "bridge:", "give at least two to compare"),
    "unknown reference": (lambda p: p.update(reference={"bridge": "six"}), "bridge: six", "no variant 'six'"),
    "unknown axis": (lambda p: p.update(reference={"brigde": "one"}), "brigde", "did you mean bridge?"),
    "unknown combination": (
        lambda p: p.update(design="list", combinations=[{"bridge": "six"}]),
        "bridge: six",
        "no variant 'six'; name one of two, one",
    ),
    "combinations without list": (lambda p: p.update(combinations=[{}]), "combinations", "design is one_factor"),
    "unknown design": (lambda p: p.update(design="gird"), "design", "must be one of grid, one_factor, list"),
    "no such base": (lambda p: p.update(base="none.yaml"), "base", "base (none.yaml) is no file"),
    "no budget": (lambda p: p.update(budget={"max_steps": 0}), "max_steps", "must be a positive number"),
    "odd flag": (lambda p: p.update(pairing="yes please"), "pairing", "must be true or false"),
    "odd confidence": (lambda p: p.update(confidence=95), "confidence", "must lie in [0.5, 1)"),
    "no score": (lambda p: p.update(evaluation=None), "base", "primary (shapes/overall) is no score of this plan"),
    "unknown score": (lambda p: p.update(primary="shapes/overal"), "primary", "name one of shapes/overall, shapes/"),
    "loss without direction": (
        lambda p: p.update(primary="val/flow"),
        "primary",
        "is a loss or the like; say whether more of it is better: `higher_is_better: false`",
    ),
    "paired reference seeds": (
        lambda p: p.update(reference_seeds=[5]),
        "reference_seeds",
        "leave them out, or `pairing: false`",
    ),
    "axis like a column": (
        lambda p: p["axes"].update(git={"a": {}, "b": {}}),
        "git:",
        "axis 'git' would be a column of results.csv twice",
    ),
    "metric like the benchmark": (
        lambda p: p.update(metrics={"shapes": "my.Metric"}),
        "shapes: my",
        "has the name of the benchmark of `evaluation`",
    ),
    "unknown world": (lambda p: p["evaluation"].update(world="cities"), "world", "cities"),
    "unknown setting": (lambda p: p["evaluation"].update(settings={"guidance": 1}), "guidance", "'guidance'"),
    "metric without class": (lambda p: p.update(metrics={"mine": {}}), "mine", "has no class_path"),
}
NOT_BUILT: dict[str, tuple[Change, str, str]] = {
    "refused value": (
        lambda p: bridge(p)["model.model.bridge"].update(init_args={"depth": 0}),
        "depth: 0",
        "variant bridge: one can not be built: depth (0) must be at least 1.",
    ),
    "unknown argument": (
        lambda p: bridge(p)["model.model.bridge"].update(init_args={"depht": 1}),
        "depht",
        "Option 'depht' is not accepted",
    ),
    "no such class": (
        lambda p: bridge(p).update({"model.model.bridge": "blip3o.bridge.mlp.NoBridge"}),
        "NoBridge",
        "has no attribute 'NoBridge'",
    ),
    "trainer": (lambda p: bridge(p).update({"trainer.max_step": 3}), "max_step: 3", "'max_step'"),
    "shared": (lambda p: p["overrides"].update({"data.batch_size": 0}), "batch_size", "batch_size (0) must be"),
    "no end": (
        lambda p: bridge(p).update({"trainer.max_steps": -1}),
        "trainer.max_steps: -1",
        "max_steps (-1) must be at least 1: rows never end",
    ),
    "other size": (
        lambda p: bridge(p).update({"data.world": "shapes"}),
        "data.world",
        "image_size (32) of FlowHead is not the canvas (64) of the data's world",
    ),
    "no validation": (
        lambda p: p.update(primary="val/flow", higher_is_better=False, budget={"max_steps": 2}),
        "primary",
        "is of validation, but the reference has none within 2 steps",
    ),
    "blame for the change alone": (
        lambda p: (
            p["axes"]["bridge"]["two"].update({"model.model.diffusion.image_size": 32}),
            bridge(p).update({"data.world": "shapes"}),
        ),
        "data.world",
        "image_size (32) of FlowHead is not the canvas (64)",
    ),
    "no such metric": (
        lambda p: p.update(metrics={"mine": "nowhere.Metric"}),
        "mine",
        "(nowhere.Metric) can not be imported",
    ),
    "no metric": (lambda p: p.update(metrics={"mine": "pathlib.Path"}), "mine", "is no blip3o.ablation.metrics.Metric"),
    "nothing to draw": (
        lambda p: p.update(
            base=str(Path(p["base"]).with_name("codec.yaml")), overrides={}, axes={"a": {"x": {}, "y": {}}}
        ),
        "evaluation",
        "CodecModule generates no pictures",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES | NOT_BUILT)
def test_a_mistake_is_one_line_with_its_place_and_the_remedy(tmp_path: Path, mistake: str) -> None:
    change, word, told = (MISTAKES | NOT_BUILT)[mistake]
    values = plan_values()
    change(values)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError) as error:
        check_plan(read_plan(path))
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    assert told in message
    line = line_of(path, word) + (1 if mistake == "repeated seed" else 0)
    assert message.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: [", "plan.yaml:1: no YAML"),
        ("base: a\nseeds: [0]\nbase: b\n", "plan.yaml:3: 'base' is stated twice; leave one."),
        ("- 1\n", "plan.yaml:1: a plan is a mapping"),
        ("", "plan.yaml:1: a plan is a mapping"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read_plan(tmp_path / "plan.yaml")
    assert told in str(error.value)


def test_numbers_are_those_of_experiments(tmp_path: Path) -> None:
    axes = {"rate": {"low": {"model.optimization.lr": 0.1}, "high": {}}}
    path = write_plan(tmp_path, axes=axes)
    path.write_text(path.read_text().replace("0.1", "1e-3"))
    assert read_plan(path).axes["rate"]["low"] == {"model.optimization.lr": 0.001}


def test_a_metric_may_name_no_arguments(tmp_path: Path) -> None:
    metric = {"class_path": "blip3o.ablation.metrics.ShapesMetric", "init_args": None}
    plan = read_plan(write_plan(tmp_path, metrics={"again": metric}))
    assert plan.metrics == {"again": {"class_path": metric["class_path"]}}


def test_a_plan_can_be_run_from_the_folder_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(MINI.read_text())
    path = write_plan(tmp_path, base="base.yaml")
    path.write_text("# a remark\n" + path.read_text())
    root = tmp_path / "far" / "out"
    root.mkdir(parents=True)
    keep_plan(read_plan(path), root)
    copy = read_plan(root / "plan.yaml")
    assert copy.base_path.samefile(tmp_path / "base.yaml") and "# a remark" in copy.source.text
    assert [run.id for run in list_runs(copy)] == [run.id for run in list_runs(read_plan(path))]
    keep_plan(copy, root)
    assert (root / "plan.yaml").read_text() == copy.source.text


def test_finished_runs_that_a_changed_plan_leaves_behind_are_told(tmp_path: Path) -> None:
    runs = list_runs(read_plan(write_plan(tmp_path)))
    for run in runs:
        write_json(run.folder(tmp_path) / RESULT, {})
    assert left_behind(runs, tmp_path) == ""
    changed = list_runs(read_plan(write_plan(tmp_path, budget={"max_steps": 4})))
    assert left_behind(changed, tmp_path).startswith("0 of 2 finished runs")
