"""What a run did: losses by step and by time, pace, and the operations of one step."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from blip3o.flops import flop_counter

_COUNTED_STEP = 1  # the second step: the first one also builds what later ones reuse
_WARM_UP = 3  # steps that pace leaves out
_PERIOD = 1.0  # seconds between two notes of progress


@dataclass
class _Step:
    """What the batches of a step add up to so far; `flops` is None where they are not counted."""

    seconds: float = 0.0
    flops: int | None = None
    rows: int = 0


class Recorder(Callback):
    """Records a `fit`; what it knows goes into checkpoints, so that a resumed run has one record.

    Time is that of training alone, in seconds: start, the loading of data, validation and the step whose operations
    are counted are left out. A step is one of the optimizer, however many batches its gradient comes from.

    Args:
        progress: file that is told the step now and then, for whoever watches.
        every: steps between two records of the training metrics; about 200 in all when None.

    Attributes:
        curve: rows with `step`, `seconds` and the metrics logged then.
        flops: floating-point operations of one training step (forward, backward and optimizer), as torch counts them:
            matrix products, convolutions and attention. None before the second step.
        seconds: of training so far.
        rows: rows of the last step.
    """

    def __init__(self, progress: Path | None = None, every: int | None = None) -> None:
        self.progress = progress
        self.every = every
        self.curve: list[dict[str, float]] = []
        self.flops: int | None = None
        self.seconds = 0.0
        self.rows = 0
        self._durations: list[float] = []
        self._counter: FlopCounterMode | None = None
        self._start = self._noted = 0.0
        self._before = 0
        self._step = _Step()

    @property
    def seconds_per_step(self) -> float:
        """The median, warm-up left out where there is more; NaN for a run without a step."""
        durations = self._durations[_WARM_UP:] or self._durations
        return float(np.median(durations)) if durations else float("nan")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock, and on one step the counter."""
        if trainer.global_step >= _COUNTED_STEP and self.flops is None:
            self._counter = flop_counter()
            self._counter.__enter__()
        self._before = trainer.global_step
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops them, and takes notes where the batch was the last one of a step."""
        step = self._step
        step.rows += _rows(batch) * trainer.world_size
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            step.flops = (step.flops or 0) + self._counter.get_total_flops() * trainer.world_size
            self._counter = None
        else:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            step.seconds += time.perf_counter() - self._start
        if trainer.global_step == self._before:
            return
        self._step = _Step()
        self.rows = step.rows
        if step.flops is not None:
            self.flops = step.flops
        else:
            self.seconds += step.seconds
            self._durations.append(step.seconds)
        every = self.every or max(1, trainer.max_steps // 200)
        if trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps:
            self._record(trainer, "train/")
        self._note(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what validation logged."""
        if not trainer.sanity_checking:
            self._record(trainer, "val/")

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded."""
        names = ("curve", "flops", "seconds", "rows", "_durations")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with an earlier record."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def _record(self, trainer: Trainer, prefix: str) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        if values:
            self.curve.append({"step": trainer.global_step, "seconds": self.seconds, **values})

    def _note(self, trainer: Trainer) -> None:
        """Writes the step, at most once a second, whole or not at all."""
        last = trainer.global_step == trainer.max_steps
        if (
            self.progress is None
            or not trainer.is_global_zero
            or (time.monotonic() - self._noted < _PERIOD and not last)
        ):
            return
        self._noted = time.monotonic()
        told = {"step": trainer.global_step, "max_steps": trainer.max_steps, "seconds": self.seconds}
        new = self.progress.with_suffix(".part")
        new.write_text(json.dumps(told))
        new.replace(self.progress)


def _rows(batch: Any) -> int:
    """Rows of a batch: the length of its first tensor."""
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else [batch]
    return next((len(value) for value in values if isinstance(value, torch.Tensor) and value.ndim), 0)
