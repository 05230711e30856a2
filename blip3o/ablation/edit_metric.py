"""The editing benchmark of the shapes world as a metric of `blip3o ablate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from blip3o.ablation.metrics import Metric, PromptResult, Scores
from blip3o.evaluation.shapes_edit import SCORES, check_takes_edits, evaluate_edits
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.shapes import evaluation_edits, get_world


class ShapesEditMetric(Metric):
    """Held-out edits: `success`, `consistency`, `both` and `mae`, and each of them by kind as `success/KIND`.

    Named `shapes-edit` in a plan, they are its scores `shapes-edit/success` and so on. `overall` is `success`, the one
    with results edit by edit.

    Args:
        num_edits: held-out edits.
        seed: of edits and pictures.
        batch_size: pictures generated at a time.
        world: of the edits.
        kinds: kinds of edit; all of `blip3o.shapes.EDIT_KINDS` that the world holds when None.
        settings: arguments of generation; the run's own where left out.

    Raises:
        ValueError: if there are no such edits.
    """

    lower_is_better: ClassVar[tuple[str, ...]] = ("mae",)

    def __init__(
        self,
        num_edits: int = 100,
        seed: int = 0,
        batch_size: int = 32,
        world: str = "shapes",
        kinds: list[str] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.num_edits = num_edits
        self.seed = seed
        self.batch_size = batch_size
        self.world = world
        self.kinds = kinds
        self.settings = settings or {}
        self._edits = evaluation_edits(get_world(world), num_edits, seed, kinds)

    def check(self, model: Blip3oNext) -> None:
        """Refuses a model that can not be told these edits."""
        check_takes_edits(model, self._edits)

    def measure(self, pipe: Blip3oPipeline, folder: Path) -> Scores:
        """Writes `results.jsonl`, `summary.json` and `sheet.png`; the single pictures do not stay."""
        summary = evaluate_edits(
            pipe,
            folder,
            num_edits=self.num_edits,
            seed=self.seed,
            batch_size=self.batch_size,
            world=self.world,
            kinds=self.kinds,
            **self.settings,
        )
        for sample in folder.glob("[0-9]" * 5):
            shutil.rmtree(sample)
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        values = {"overall": summary["success"]["mean"]} | {name: summary[name]["mean"] for name in SCORES}
        for kind, scores in summary["kinds"].items():
            values |= {f"{name}/{kind}": scores[name]["mean"] for name in SCORES}
        prompts = [
            PromptResult(f"{row['filename'][:5]} {row['prompt']}", row["tag"], float(row["correct"])) for row in rows
        ]
        return Scores(values, prompts)
