"""What is recorded of a step, whatever number of batches its gradient comes from."""

from __future__ import annotations

import math

from lightning import Trainer

from blip3o.data.shapes import ShapesDataModule
from blip3o.training.base import Optimization
from blip3o.training.joint import JointModule
from blip3o.training.quiet import quiet
from blip3o.training.recording import Recorder
from tests.tiny import tiny_model


def recorded(accumulate: int) -> Recorder:
    recorder = Recorder(every=1)
    data = ShapesDataModule(world="shapes-mini", batch_size=2, num_val=1, num_prompts=1)
    with quiet(everything=True):
        trainer = Trainer(
            accelerator="cpu",
            max_steps=4,
            accumulate_grad_batches=accumulate,
            log_every_n_steps=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[recorder],
        )
        trainer.fit(JointModule(tiny_model(), Optimization(lr=1e-3, warmup_steps=1)), datamodule=data)
    return recorder


def test_a_step_of_several_batches_is_recorded_as_one() -> None:
    one, three = recorded(1), recorded(3)
    assert one.flops and three.flops
    assert 2.8 < three.flops / one.flops < 3.2  # captions differ in length, batches hardly in operations
    assert (one.rows, three.rows) == (2, 6)
    assert [row["step"] for row in three.curve] == [row["step"] for row in one.curve] == [1, 2, 3, 4]
    assert math.isfinite(three.seconds_per_step) and three.seconds > three.seconds_per_step
