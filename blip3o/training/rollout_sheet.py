"""A picture of the best and the worst image of some groups, every so many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from blip3o.images import contact_sheet


class RolloutSheet(Callback):
    """Writes `rollouts/STEP.png` in the trainer's log folder: for each prompt its best image, then its worst.

    Args:
        every_n_steps: rollouts from one sheet to the next.
        num_prompts: groups on a sheet, at most.
        scale: whole factor by which the images are enlarged.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, every_n_steps: int = 20, num_prompts: int = 6, scale: int = 1) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_prompts", num_prompts), ("scale", scale)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1.")
        self.every_n_steps = every_n_steps
        self.num_prompts = num_prompts
        self.scale = scale

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the sheet of a step, from the process with rank 0."""
        if batch_idx % self.every_n_steps:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "rollouts"  # log_dir is asked of all processes
        if not trainer.is_global_zero:
            return
        images, captions = [], []
        groups = zip(outputs["images"], outputs["rewards"], outputs["prompts"], strict=True)
        for pictures, rewards, prompt in list(groups)[: self.num_prompts]:
            known = np.flatnonzero(np.isfinite(rewards))
            if not len(known):
                continue
            for which, index in (
                ("best", known[rewards[known].argmax()]),
                ("worst", known[rewards[known].argmin()]),
            ):
                images.append(pictures[index])
                captions.append(f"{which} {rewards[index]:.2f}: {prompt}")
        if images:
            folder.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet(np.stack(images), captions, columns=2, scale=self.scale)
            sheet.save(folder / f"{trainer.global_step:06d}.png")
