"""Plans for tests: a base as small as mini.yaml allows, and heads of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.readme import block

MINI = Path(__file__).parents[2] / "experiments/shapes/mini.yaml"
HEAD = "model.model.diffusion"
BROKEN = """
from my_head import MyHead


class BrokenHead(MyHead):
    def loss(self, images, conditioning, references=None, generator=None):
        raise RuntimeError("this head never learns")
"""


def plan_values(**changes: Any) -> dict[str, Any]:
    """A plan of two bridges that differ in depth; a key that is given as None is left out."""
    values: dict[str, Any] = {
        "base": str(MINI),
        "budget": {"max_steps": 3},
        "overrides": {"data.batch_size": 4, "data.num_val": 2, "trainer.val_check_interval": 3},
        "seeds": [0],
        "axes": {"bridge": {"two": {}, "one": {"model.model.bridge": {"class_path": "blip3o.bridge.MLPBridge"}}}},
        "evaluation": {"num_captions": 6, "settings": {"num_inference_steps": 1}},
        "margin": 0.05,
    }
    values["axes"]["bridge"]["one"]["model.model.bridge"]["init_args"] = {"depth": 1}
    return {key: value for key, value in (values | changes).items() if value is not None}


def write_plan(folder: Path, **changes: Any) -> Path:
    """`plan_values` as a file."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_values(**changes), sort_keys=False))
    return path


def write_heads(folder: Path) -> dict[str, Any]:
    """The README's head and a broken one as files outside the package; an axis that names them."""
    (folder / "my_head.py").write_text(block("python", "class MyHead"))
    (folder / "broken_head.py").write_text(BROKEN)
    return {"head": {"dit": {}, "mine": {HEAD: "my_head.MyHead"}, "broken": {HEAD: "broken_head.BrokenHead"}}}
