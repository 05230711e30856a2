"""docs/ablations.md: every key of a plan is told of, and the example is a plan."""

from __future__ import annotations

import re
from pathlib import Path

from blip3o.ablation.plan import KEYS, read_plan

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/ablations.md").read_text()


def test_every_key_has_a_row_and_there_is_no_other() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.M)) == set(KEYS)


def test_the_example_is_a_plan(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.S)
    path = tmp_path / "plans/plan.yaml"
    path.parent.mkdir()
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/mini.yaml").write_text((ROOT / "experiments/shapes/mini.yaml").read_text())
    path.write_text(block)
    plan = read_plan(path)
    assert plan.reference == {"bridge": "mlp"} and list(plan.axes["bridge"]) == ["mlp", "transformer"]
