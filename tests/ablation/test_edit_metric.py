"""Edits as a metric of ablations: its scores, and the plans and models that it refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip3o.ablation.check import check_plan
from blip3o.ablation.edit_metric import ShapesEditMetric
from blip3o.ablation.metrics import build_metric
from blip3o.ablation.plan import read_plan
from blip3o.shapes import SHAPES_MINI, evaluation_edits
from tests.ablation.plans import write_plan
from tests.tiny import WORDS, tiny_model
from tests.tiny_edits import EDIT_WORDS, Oracle, tiny_edit_model

CLASS = "blip3o.ablation.edit_metric.ShapesEditMetric"
ARGUMENTS: dict[str, Any] = {"num_edits": 15, "world": "shapes-mini", "seed": 2}


def test_scores_are_those_of_the_benchmark_with_results_edit_by_edit(tmp_path: Path) -> None:
    metric = build_metric({"class_path": CLASS, "init_args": ARGUMENTS})
    scores = metric.measure(Oracle(evaluation_edits(SHAPES_MINI, 15, 2), SHAPES_MINI), tmp_path)
    names = ("success", "consistency", "both", "mae")
    kinds = ("recolor", "remove", "add", "replace", "background")
    assert set(scores.values) == {"overall", *names, *(f"{name}/{kind}" for name in names for kind in kinds)}
    assert scores.values["overall"] == scores.values["success"]
    by_kind = [[one.value for one in scores.prompts if one.tag == kind] for kind in kinds]
    assert scores.values["overall"] == pytest.approx(sum(sum(v) / len(v) for v in by_kind) / len(kinds))
    assert len({one.prompt for one in scores.prompts}) == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "sheet.png", "summary.json"]


def test_a_model_that_takes_no_references_is_refused() -> None:
    metric = ShapesEditMetric(**ARGUMENTS)
    metric.check(tiny_edit_model())
    with pytest.raises(ValueError, match="its text tokenizer lacks"):
        metric.check(tiny_model())


def edit_plan(folder: Path, *, words: bool = True, **changes: Any) -> Path:
    """A plan whose model knows the words of edits, or not."""
    overrides: dict[str, Any] = {"data.batch_size": 4, "data.num_val": 2, "trainer.val_check_interval": 3}
    if words:
        overrides |= {
            "model.model.ar.text_tokenizer": [*WORDS, *EDIT_WORDS],
            "model.model.template.edit": "{instruction}",
            "model.model.template.before_references": "",
            "model.model.template.after_references": "",
        }
    metrics = {"shapes-edit": {"class_path": CLASS, "init_args": ARGUMENTS}}
    values = {"overrides": overrides, "metrics": metrics, "primary": "shapes-edit/success"}
    return write_plan(folder, **{**values, **changes})


def test_a_plan_may_compare_edits(tmp_path: Path) -> None:
    check_plan(read_plan(edit_plan(tmp_path)))
    check_plan(read_plan(edit_plan(tmp_path, primary="shapes-edit/mae", higher_is_better=False)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"words": False}, "metric 'shapes-edit' can not score the reference: model can not be told an edit"),
        ({"primary": "shapes-edit/mae"}, "is better where it is lower; add `higher_is_better: false`."),
        ({"primary": "shapes-edit/mae/add"}, "is better where it is lower; add `higher_is_better: false`."),
        (
            {"metrics": {"shapes-edit": {"class_path": CLASS, "init_args": {"kinds": ["move"]}}}},
            "kind ('move') is no kind of edit",
        ),
    ],
)
def test_plans_that_could_not_be_scored_are_refused_first(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        check_plan(read_plan(edit_plan(tmp_path, **changes)))
    assert told in str(error.value) and str(error.value).startswith(str(tmp_path / "plan.yaml:"))
