"""ShapesPromptsDataModule: the captions of training and of evaluation, with their metadata, in a fixed order."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from blip3o.data.shapes import ShapesDataModule
from blip3o.data.shapes_prompts import ShapesPromptsDataModule
from blip3o.data.stream import Row
from blip3o.shapes import SHAPES_MINI, is_held_out, metadata, parse_caption


def prompts(**arguments: int) -> ShapesPromptsDataModule:
    return ShapesPromptsDataModule(world="shapes-mini", num_prompts=3, **{"batch_size": 4, "num_val": 20, **arguments})


def captions(loader: DataLoader[Row]) -> list[str]:
    return [prompt for batch in loader for prompt in batch["prompt"]]


def test_batches_hold_indices_prompts_and_metadata() -> None:
    first, second = islice(prompts().train_dataloader(), 2)
    assert first["index"].tolist() == [0, 1, 2, 3] and second["index"].tolist() == [4, 5, 6, 7]
    assert first["index"].dtype == torch.int64
    assert first["prompt"] == first["caption"]
    assert first["metadata"] == [metadata(prompt, SHAPES_MINI) for prompt in first["prompt"]]


def test_training_prompts_are_the_captions_of_the_scenes_and_never_held_out() -> None:
    scenes = ShapesDataModule(world="shapes-mini", batch_size=4, num_val=1, num_prompts=1)
    for with_images, alone in islice(zip(scenes.train_dataloader(), prompts().train_dataloader(), strict=False), 8):
        assert with_images["caption"] == alone["prompt"]
        assert not any(is_held_out(prompt) for prompt in alone["prompt"])


def test_validation_and_test_have_balanced_held_out_captions_of_their_own() -> None:
    data = prompts(val_batch_size=7)
    val, test = captions(data.val_dataloader()), captions(data.test_dataloader())
    assert [len(batch["prompt"]) for batch in data.val_dataloader()] == [7, 7, 6]
    assert len(val) == len(test) == 20 and val != test
    tags = [parse_caption(caption, SHAPES_MINI).tag for caption in val]
    assert max(map(tags.count, set(tags))) - min(map(tags.count, set(tags))) <= 1
    assert sum(is_held_out(caption) for caption in val) > 8


def test_predictions_are_of_the_held_out_prompts() -> None:
    (batch,) = prompts().predict_dataloader()
    assert batch["caption"] == prompts().prompts and batch["index"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"val_batch_size \(0\)"):
        prompts(val_batch_size=0)
