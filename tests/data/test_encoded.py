"""Encoded rows: what is written is read, epochs are permutations, runs resume, and damage is told."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.data.encoded import EncodedDataModule
from blip3o.data.shard_writer import ShardWriter
from blip3o.data.shards import INDEX, EncodedIndex, EncodedRows, Split, read_index
from blip3o.data.stream import Row
from blip3o.pixels import to_tensor

NUM_ROWS = 7
CODES = torch.Generator().manual_seed(0)
IDS = torch.randint(100, (NUM_ROWS, 4), generator=CODES)
LATENTS = torch.randn(NUM_ROWS, 3, 2, 2, generator=CODES)
PICTURES = torch.randint(256, (NUM_ROWS, 8, 8, 3), generator=CODES, dtype=torch.uint8)


def rows_of(batch: Row) -> list[Row]:
    """What an encoder would give for the rows of a batch."""
    chosen = [
        {"index": i, "caption": f"row {i}", "key": f"é/{i}", "image_ids": IDS[i], "latents": LATENTS[i]}
        for i in batch["index"].tolist()
    ]
    return [row | {"image": picture(row["index"])} for row in chosen] if "image" in batch else chosen


def picture(index: int) -> Tensor:
    return to_tensor(PICTURES[index].numpy())


def write(folder: Path, *, size: int = 3, dtype: str = "float32", **changes: Any) -> Path:
    """Seven training rows and two of validation, which have pictures."""
    folder.mkdir()
    shards, counts = {}, {}
    splits: dict[Split, Tensor] = {"train": torch.arange(NUM_ROWS), "val": torch.arange(2), "test": torch.arange(0)}
    for split, index in splits.items():
        writer = ShardWriter(folder, split, size, getattr(torch, dtype))
        for part in index.split(2):
            if len(part):
                writer.add({"index": part} | ({"image": None} if split == "val" else {}), rows_of)
        shards[split], counts[split] = writer.finish()
    values: dict[str, Any] = {
        "encoders": {},
        "image_size": 8,
        "num_tokens": 4,
        "latent_shape": [3, 2, 2],
        "dtype": dtype,
        "num_rows": counts,
        "shards": shards,
        "prompts": ["one", "two"],
        "world": "shapes-mini",
        "data": {},
    }
    EncodedIndex(folder=folder, **values | changes).write()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "encoded")


def data(folder: Path, **arguments: Any) -> EncodedDataModule:
    return EncodedDataModule(folder=folder, **{"batch_size": 2, **arguments})


def batches(module: EncodedDataModule, count: int) -> list[Row]:
    return list(islice(iter(module.train_dataloader()), count))


def captions(module: EncodedDataModule, count: int) -> list[str]:
    return [caption for batch in batches(module, count) for caption in batch["caption"]]


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_was_written_is_read(folder: Path, in_memory: bool) -> None:
    rows = EncodedRows(read_index(folder), "train", in_memory=in_memory)
    assert len(rows) == NUM_ROWS and sorted(path.name for path in folder.glob("train-*.tar")) == [
        f"train-{number:06d}.tar" for number in range(3)
    ]
    for number, row in enumerate(rows[i] for i in range(len(rows))):
        assert (row["index"], row["caption"], row["key"]) == (number, f"row {number}", f"é/{number}")
        assert torch.equal(row["image_ids"], IDS[number]) and row["image_ids"].dtype == torch.int64
        assert torch.equal(row["latents"], LATENTS[number]) and "image" not in row


def test_the_shards_are_webdataset_tars(folder: Path) -> None:
    """What reads pictures with captions from tars reads the keys and notes of these."""
    from blip3o.data.sources import TarSource

    source = TarSource(tars=str(folder / "val-*.tar"), caption_key="caption")
    found = list(source.rows(source.shards()[0]))
    assert [row.caption for row in found] == ["row 0", "row 1"] and all(row.image for row in found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_latents_stored_in_half_precision_are_given_as_float32(tmp_path: Path, dtype: str, in_memory: bool) -> None:
    index = read_index(write(tmp_path / "half", dtype=dtype))
    row = EncodedRows(index, "train", in_memory=in_memory)[5]
    assert torch.equal(row["latents"], LATENTS[5].to(getattr(torch, dtype)).float())
    assert torch.equal(row["image_ids"], IDS[5])
    assert index.nbytes("train") == NUM_ROWS * (4 * 4 + 2 * 12)


def test_held_out_rows_keep_their_index_and_their_picture(folder: Path) -> None:
    (batch,) = data(folder).val_dataloader()
    assert batch["index"].tolist() == [0, 1] and batch["caption"] == ["row 0", "row 1"]
    assert torch.equal(batch["image"], torch.stack([picture(0), picture(1)]))
    assert torch.equal(batch["latents"], LATENTS[:2])
    module = data(folder, num_val=1)
    assert [batch["index"].tolist() for batch in module.val_dataloader()] == [[0]]
    assert module.test_dataloader() == []
    assert [batch["caption"] for batch in module.predict_dataloader()] == [["one", "two"]]
    assert module.world is not None and module.world.canvas == 32


def test_every_epoch_has_all_rows_in_its_own_order_and_indices_never_repeat(folder: Path) -> None:
    stream = batches(data(folder), 21)  # six epochs, whose ends lie within batches
    index = torch.cat([batch["index"] for batch in stream]).tolist()
    assert index == list(range(42))
    names = [caption for batch in stream for caption in batch["caption"]]
    epochs = [tuple(names[start : start + NUM_ROWS]) for start in range(0, 42, NUM_ROWS)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs) and len(set(epochs)) == 6
    for batch in stream:
        numbers = [int(caption.split()[1]) for caption in batch["caption"]]
        assert torch.equal(batch["image_ids"], IDS[numbers]) and torch.equal(batch["latents"], LATENTS[numbers])
    assert captions(data(folder), 21) == names != captions(data(folder, seed=1), 21)


def test_without_shuffling_rows_come_as_they_were_encoded(folder: Path) -> None:
    assert captions(data(folder, shuffle=False), 7) == [f"row {i % NUM_ROWS}" for i in range(14)]


@pytest.mark.parametrize("arguments", [{"in_memory": False}, {"in_memory": True, "num_workers": 2}])
def test_memory_and_workers_do_not_change_the_rows(folder: Path, arguments: dict[str, Any]) -> None:
    for expected, found in zip(batches(data(folder), 9), batches(data(folder, **arguments), 9), strict=True):
        assert expected["caption"] == found["caption"]
        assert all(torch.equal(expected[name], found[name]) for name in ("index", "image_ids", "latents"))


class _Rank:
    """What a data module asks a trainer for."""

    limit_train_batches = 1.0

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size


def test_processes_share_the_rows_that_one_would_see(folder: Path) -> None:
    whole = captions(data(folder, batch_size=4), 7)
    shares = []
    for rank in range(2):
        module = data(folder)
        module.trainer = _Rank(rank, 2)  # type: ignore[assignment]
        shares.append(batches(module, 7))
    names = [caption for pair in zip(*shares, strict=True) for batch in pair for caption in batch["caption"]]
    assert names == whole


def test_a_resumed_module_goes_on_with_the_next_batch(folder: Path) -> None:
    module = data(folder)
    module.load_state_dict({"batches_seen": 5, "num_rows": NUM_ROWS})
    assert captions(module, 8) == captions(data(folder), 13)[10:]
    assert data(folder).state_dict() == {"batches_seen": 0, "num_rows": NUM_ROWS}
    module.load_state_dict({"batches_seen": 5, "num_rows": 9})
    with pytest.raises(ValueError, match=r"has 7 training rows, but the run to resume had 9"):
        module.train_dataloader()


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.json"])
def test_a_shard_that_is_not_whole_is_told(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "damaged")
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-000001.tar is missing or not whole; copy it again, or remove"):
        data(folder).train_dataloader()


def test_wrong_folders_and_arguments_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"none\) does not exist: it has no index.json; run `blip3o data encode"):
        data(tmp_path / "none")
    with pytest.raises(ValueError, match="is not encoded to its end"):
        data(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="of another format"):
        data(tmp_path)
    for arguments, told in (
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"num_val": 3}, r"num_val \(3\) is more than the 2 validation rows"),
    ):
        with pytest.raises(ValueError, match=told):
            data(folder, **arguments)
