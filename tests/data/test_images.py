"""ImageDataModule: what its batches hold, mixed batches, resuming in a real run, and what it refuses."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from blip3o.data.images import BatchMaker, ImageDataModule
from blip3o.data.mixture import Weighted
from blip3o.data.sources import Record
from blip3o.pixels import cropped, squeezed
from tests.data.pictures import Numbers


def data(*sources: Weighted, **arguments: Any) -> ImageDataModule:
    values: dict[str, Any] = {"image_size": 16, "token_image_size": 8, "batch_size": 4, "shuffle_buffer": 8}
    return ImageDataModule(sources=list(sources or [Weighted(Numbers([30, 30]))]), **values | arguments)


def photo(number: int) -> Image.Image:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (24, 36, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_batches_hold_the_pictures_at_both_sizes() -> None:
    records = [Record("a", "one", photo(0)), Record("b", "two", photo(1))]
    batch = BatchMaker(16, 8)(records, 10)
    assert batch["index"].tolist() == [10, 11] and batch["index"].dtype == torch.int64
    assert (batch["caption"], batch["key"]) == (["one", "two"], ["a", "b"])
    assert torch.equal(batch["image"], torch.stack([cropped(photo(i), 16) for i in range(2)]))
    assert torch.equal(batch["token_image"], torch.stack([squeezed(photo(i), 8) for i in range(2)]))
    assert batch["num_references"].tolist() == [0, 0] and "references" not in batch
    assert "token_image" not in BatchMaker(16)(records, 0)


def test_references_come_first_and_zeros_fill_them_up() -> None:
    records = [
        Record("a", "one", photo(0)),
        Record("b", "two", photo(1), (photo(2), photo(3))),
        Record("c", "three", photo(4), (photo(5),)),
    ]
    batch = BatchMaker(16, 8)(records, 0)
    assert batch["num_references"].tolist() == [0, 2, 1]
    assert batch["references"].shape == (3, 2, 3, 16, 16) and batch["token_references"].shape == (3, 2, 3, 8, 8)
    for row, place, number in ((1, 0, 2), (1, 1, 3), (2, 0, 5)):
        assert torch.equal(batch["references"][row, place], cropped(photo(number), 16))
        assert torch.equal(batch["token_references"][row, place], squeezed(photo(number), 8))
    assert not batch["references"][0].any() and not batch["references"][2, 1].any()


class Seen(LightningModule):
    """Keeps the captions it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.captions: list[list[str]] = []
        self.shapes: set[tuple[int, ...]] = set()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert "progress" not in batch
        self.captions.append(batch["caption"])
        self.shapes.add(tuple(batch["image"].shape))
        return self.weight * 1

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert batch["index"].tolist() == [0, 1, 2]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(module: ImageDataModule, folder: Path, steps: int, checkpoint: Path | None = None) -> list[list[str]]:
    seen = Seen()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(seen, datamodule=module, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    assert seen.shapes == {(4, 3, 16, 16)}
    return seen.captions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_rows_that_follow(tmp_path: Path, num_workers: int) -> None:
    def module() -> ImageDataModule:
        sources = [Weighted(Numbers([30, 30], bad=[3, 40])), Weighted(Numbers([9], prefix="b"), 0.3)]
        held_out = [Weighted(Numbers([5], prefix="val"))]
        return data(*sources, num_workers=num_workers, val_sources=held_out, num_val=3)

    whole = trained(module(), tmp_path, 7)
    first = module()
    assert trained(first, tmp_path, 3) == whole[:3]
    assert trained(module(), tmp_path, 7, tmp_path / "3.ckpt") == whole[3:]
    state = torch.load(tmp_path / "3.ckpt", weights_only=False)["ImageDataModule"]
    assert state == first.state_dict() and state["batches_seen"] == 3


def test_rows_of_text_to_image_and_edits_share_batches() -> None:
    module = data(Weighted(Numbers([20])), Weighted(Numbers([20], prefix="edit ", edits=2)), batch_size=16)
    batch = next(iter(module.train_dataloader()))
    counts = batch["num_references"].tolist()
    assert set(counts) == {0, 2}
    assert [caption.startswith("edit") for caption in batch["caption"]] == [count == 2 for count in counts]


def test_failures_are_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    module = data(Weighted(Numbers([12], bad=[5, 8])))
    with caplog.at_level(logging.WARNING):
        for batch in islice(iter(module.train_dataloader()), 3):
            module.on_before_batch_transfer(batch, 0)
    assert {failure.key for failure in module.failures} == {"key 5", "key 8"}
    assert module.num_failures == len(module.failures) == len(caplog.messages)
    assert caplog.messages[0].startswith("skipped a row of Numbers([12]): key ")


def test_a_run_with_other_readers_can_not_be_resumed() -> None:
    module = data()
    for batch in islice(iter(module.train_dataloader()), 2):
        module.on_before_batch_transfer(batch, 0)
    other = data(num_workers=2)
    other.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match=r"\(processes, num_workers\) = \(1, 0\), this one reads with \(1, 2\)"):
        other.train_dataloader()


def test_validation_rows_are_the_first_usable_ones() -> None:
    held_out = [Weighted(Numbers([8], bad=[1], prefix="val "))]
    module = data(val_sources=held_out, num_val=5, batch_size=3)
    captions = [caption for batch in module.val_dataloader() for caption in batch["caption"]]
    assert captions == ["val 0", "val 2", "val 3", "val 4", "val 5"]
    assert torch.cat([batch["index"] for batch in module.val_dataloader()]).tolist() == list(range(5))
    assert [failure.key for failure in module.failures] == ["key 1"]
    assert data().val_dataloader() == []


def test_prompts_are_given_for_prediction() -> None:
    (batch,) = data(prompts=["a cat", "a dog"]).predict_dataloader()
    assert batch["caption"] == ["a cat", "a dog"] and batch["index"].tolist() == [0, 1]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sources \(\[\]\) must hold at least one source"):
        ImageDataModule(sources=[], image_size=16)
    with pytest.raises(ValueError, match=r"shuffle_buffer \(0\) must be at least 1"):
        data(shuffle_buffer=0)
