"""What the demo's stages find out and its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blip3o.info import PartInfo
from blip3o.training.history import Metrics


@dataclass(frozen=True)
class TokenGrid:
    """The image tokens of a picture.

    Attributes:
        ids: rows of ids.
        colors: for each id an RGB colour, 0-255, alike for tokens that mean alike.
    """

    ids: Sequence[Sequence[int]]
    colors: Sequence[Sequence[tuple[int, int, int]]]


@dataclass(frozen=True)
class Sample:
    """A picture of the showcase; files are named relative to the page.

    Attributes:
        caption: what was asked for.
        tag: its task.
        image: file of the rendered picture.
        tokens: what the AR model wrote.
        decoded: file of the tokenizer's own reading of the tokens, or None where it reads no pixels from them.
        correct: the verifier's verdict.
        reason: why not, empty where correct.
        found: what the verifier saw, in words.
    """

    caption: str
    tag: str
    image: str
    tokens: TokenGrid
    decoded: str | None
    correct: bool
    reason: str
    found: str


@dataclass(frozen=True)
class Score:
    """A benchmark's result.

    Attributes:
        summary: what `blip3o.evaluation.shapes.evaluate` returns.
        rows: its result rows; `filename` is relative to `folder`.
        folder: where it wrote, relative to the page.
    """

    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    folder: str


@dataclass(frozen=True)
class Training:
    """A training run from scratch.

    Attributes:
        steps: metrics of each step, `cross_entropy` (nats a token) and `flow` among them.
        chart: file of the loss curves, relative to the page.
        batch_size: rows a step.
        guess: cross-entropy of guessing evenly among all codes, in nats.
    """

    steps: Sequence[Metrics]
    chart: str
    batch_size: int
    guess: float

    def ends(self, name: str) -> tuple[float, float]:
        """Means of a metric over the first and over the last tenth of the steps."""
        values = [step[name] for step in self.steps]
        count = max(1, len(values) // 10)
        return sum(values[:count]) / count, sum(values[-count:]) / count


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        model_name: name or folder of the model.
        command: command that makes the page.
        defaults: the model's settings of generation.
        machine: versions and devices.
        parts: the model's parts.
        samples: the showcase.
        score: the benchmark.
        training: the run from scratch.
        times: wall time of each stage, seconds.
    """

    model_name: str
    command: str
    defaults: Mapping[str, float | int | str]
    machine: str
    parts: Sequence[PartInfo]
    samples: Sequence[Sample]
    score: Score
    training: Training
    times: Mapping[str, float] = field(default_factory=dict)
