"""A run of two processes on mixed batches: `python -m tests.data.two_processes FOLDER [CHECKPOINT]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from blip3o.data.images import ImageDataModule
from blip3o.data.mixture import Weighted
from blip3o.training.base import Optimization
from blip3o.training.joint import JointModule
from tests.data.pictures import Numbers
from tests.training.test_mixed import edit_model


class Keyed(Numbers):
    """The captions are words that the model knows, the keys tell the rows apart."""

    def read(self, shard: str, start: int) -> Any:
        for row in super().read(shard, start):
            yield type(row)(self.prefix + row.key, "a red circle", row.image, row.references)


class SaveTwo(Callback):
    """Saves a checkpoint after step 2."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "2.ckpt")


class Keeping(JointModule):
    """Keeps the keys of the rows it trains on."""

    keys: list[list[str]]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.keys.append(batch["key"])
        return super().training_step(batch, batch_idx)


def main(folder: Path, checkpoint: str | None) -> None:
    sources = [Weighted(Keyed([9, 8], bad=[4]), 2), Weighted(Keyed([9], prefix="edit ", edits=1))]
    data = ImageDataModule(sources=sources, image_size=32, token_image_size=28, batch_size=2, num_workers=1)
    module = Keeping(edit_model(), Optimization(warmup_steps=1))
    module.keys = []
    trainer = Trainer(
        max_steps=5,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[SaveTwo()],
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    total = float(sum(p.detach().double().sum() for p in module.model.parameters()))
    told = {"keys": module.keys, "weights": total}
    name = f"{'resumed' if checkpoint else 'whole'}-{trainer.global_rank}.json"
    (folder / name).write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
