"""How a trained model is scored: the contract, and the shapes benchmark."""

from __future__ import annotations

import json
import pkgutil
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from blip3o.evaluation.shapes import evaluate
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline


@dataclass(frozen=True)
class PromptResult:
    """The result at one prompt: 1 for right, 0 for wrong, or anything between."""

    prompt: str
    tag: str
    value: float


@dataclass(frozen=True)
class Scores:
    """What a metric measured.

    Attributes:
        values: scores by name; they appear as `METRIC/NAME`.
        prompts: results prompt by prompt, the same prompts in every run, or none. With them `values["overall"]` must
            be the mean of the tags' means; variants are then also compared prompt by prompt.
    """

    values: dict[str, float]
    prompts: list[PromptResult] = field(default_factory=list)


class Metric(ABC):
    """Scores a model. Constructor arguments come from the plan's `init_args`; all randomness must be its own.

    Attributes:
        lower_is_better: names of scores of which less is better.
    """

    lower_is_better: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Blip3oNext) -> None:  # noqa: B027 (most metrics take every model)
        """Refuses a model that it could not score, with a ValueError, before that is trained."""

    @abstractmethod
    def measure(self, pipe: Blip3oPipeline, folder: Path) -> Scores:
        """Scores `pipe`; files may be left in `folder`, which exists and is empty."""


class ShapesMetric(Metric):
    """The shapes benchmark: overall and every tag.

    Args:
        num_captions: held-out captions.
        seed: of captions and pictures.
        batch_size: pictures generated at a time.
        world: of the captions.
        settings: arguments of generation; the run's own where left out.
    """

    def __init__(
        self,
        num_captions: int = 120,
        seed: int = 0,
        batch_size: int = 32,
        world: str = "shapes",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.num_captions = num_captions
        self.seed = seed
        self.batch_size = batch_size
        self.world = world
        self.settings = settings or {}

    def measure(self, pipe: Blip3oPipeline, folder: Path) -> Scores:
        """Writes `results.jsonl`, `summary.json` and `sheet.png`; the single pictures do not stay."""
        summary = evaluate(
            pipe,
            folder,
            num_captions=self.num_captions,
            seed=self.seed,
            batch_size=self.batch_size,
            world=self.world,
            **self.settings,
        )
        for sample in folder.glob("[0-9]" * 5):
            shutil.rmtree(sample)
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        values = {"overall": summary["overall"]["mean"]}
        values |= {tag: score["mean"] for tag, score in summary["tags"].items()}
        return Scores(values, [PromptResult(row["prompt"], row["tag"], float(row["correct"])) for row in rows])


def build_metric(description: dict[str, Any]) -> Metric:
    """The metric of a `class_path` and its `init_args`.

    Raises:
        ValueError: if there is no such class, it is no metric, or it refuses its arguments.
    """
    path = description["class_path"]
    try:
        cls = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class_path ({path}) can not be imported ({error}); is its folder on PYTHONPATH?") from error
    if not (isinstance(cls, type) and issubclass(cls, Metric)):
        raise ValueError(f"class_path ({path}) is no blip3o.ablation.metrics.Metric; derive it from that.")
    try:
        metric: Metric = cls(**(description.get("init_args") or {}))
    except TypeError as error:
        raise ValueError(f"{path} refuses its init_args: {error}.") from error
    return metric
