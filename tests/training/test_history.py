"""Training in-process, and what is kept off the console."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

from blip3o.data.shapes import ShapesDataModule
from blip3o.training.base import Optimization
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from blip3o.training.quiet import quiet
from tests.tiny import tiny_model


def test_every_step_is_recorded_and_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = JointModule(model, Optimization(lr=1e-2, warmup_steps=1))
    data = ShapesDataModule(world="shapes-mini", batch_size=4, num_val=1, num_prompts=1)
    told: list[int] = []
    steps = fit_steps(module, data, num_steps=3, on_step=lambda step, metrics: told.append(step))
    assert told == [1, 2, 3] and len(steps) == 3
    for metrics in steps:
        assert set(metrics) == {"loss", "cross_entropy", "flow"}
        assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + metrics["flow"], rel=1e-4)
    assert len({metrics["loss"] for metrics in steps}) == 3
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"ar", "bridge", "diffusion"}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"num_steps \(0\) must be at least 1"):
        fit_steps(module, data, num_steps=0)


def test_quiet_drops_tips_and_keeps_the_rest() -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    handler = Keep()
    logger.addHandler(handler)
    try:
        with quiet():
            logger.warning("💡 Tip: install something else")
            logger.warning("out of memory")
        with quiet(everything=True):
            logger.warning("no GPU")
        logger.warning("💡 Tip: afterwards")
    finally:
        logger.removeHandler(handler)
    assert kept == ["out of memory", "💡 Tip: afterwards"]


def test_quiet_keeps_warnings_that_are_not_listed() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another.", stacklevel=1)
            warnings.warn("the loss is not finite", stacklevel=1)
    assert [str(one.message) for one in seen] == ["the loss is not finite"]
