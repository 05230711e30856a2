"""Both data modules of shapes serve words as well, from Python and from YAML."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, Trainer

from blip3o.data.shapes import ShapesDataModule
from blip3o.data.shapes_prompts import ShapesPromptsDataModule
from blip3o.pixels import to_uint8
from blip3o.rewards import ShapesTextReward
from blip3o.shapes import SHAPES, is_held_out
from blip3o.shapes.any_world import get_any_world
from blip3o.shapes.text import TEXT, TEXT_MINI, TextWorld, text_metadata
from blip3o.shapes.text_reader import verify_text
from blip3o.training.quiet import quiet
from tests.training.toy import grpo


def data(kind: type[ShapesDataModule] = ShapesDataModule, **arguments: Any) -> ShapesDataModule:
    return kind(**{"world": "text-mini", "batch_size": 4, "num_val": 6, "num_prompts": 3, **arguments})


def test_pictures_show_their_captions_and_splits_never_meet() -> None:
    module = data()
    for batch, held_out in (
        (next(iter(module.train_dataloader())), False),
        (next(iter(module.val_dataloader())), True),
    ):
        assert batch["image"].shape == (4, 3, 32, 32) and batch["index"].tolist() == [0, 1, 2, 3]
        assert all(verdict.correct for verdict in verify_text(to_uint8(batch["image"]), batch["caption"], TEXT_MINI))
        assert [is_held_out(caption) for caption in batch["caption"]] == [held_out] * 4
    assert all(is_held_out(prompt) for prompt in module.prompts) and len(module.prompts) == 3


def test_prompts_are_those_of_the_pictures_with_word_and_colour() -> None:
    pictures, prompts = data(), data(ShapesPromptsDataModule)
    loaders = zip(pictures.train_dataloader(), prompts.train_dataloader(), strict=False)
    for with_images, alone in islice(loaders, 3):
        assert with_images["caption"] == alone["prompt"] and torch.equal(with_images["index"], alone["index"])
        assert alone["metadata"] == [text_metadata(prompt, TEXT_MINI) for prompt in alone["prompt"]]
    held_out = [prompt for batch in prompts.val_dataloader() for prompt in batch["prompt"]]
    assert len(held_out) == 6 and all(is_held_out(prompt) for prompt in held_out)


def test_worlds_come_from_yaml_by_name_or_by_their_parameters() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    for world, expected in (
        ("text", TEXT),
        ("shapes", SHAPES),
        ({"canvas": 48, "lengths": [3, 4], "heights": [12, 14]}, TextWorld(48, lengths=(3, 4), heights=(12, 14))),
    ):
        described = {"class_path": "blip3o.data.shapes.ShapesDataModule", "init_args": {"world": world}}
        assert parser.instantiate(parser.parse_object({"data": described})).data.world == expected
    with pytest.raises(ValueError, match=r"name \('moons'\) is not a world; choose one of .*'text-mini'"):
        get_any_world("moons")


def test_what_only_shapes_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"describe \(4\) is of shapes, but world \(text-mini\) shows words"):
        data(describe=4)
    with pytest.raises(ValueError, match="tag_weights"):
        next(iter(data(tag_weights={"counting": 1.0}).train_dataloader()))


def test_a_policy_is_trained_on_words() -> None:
    module = grpo(rewards=[ShapesTextReward("text-mini", form="soft")])
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with quiet():
        trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **dict.fromkeys(off, False))
        trainer.fit(module, datamodule=data(ShapesPromptsDataModule, batch_size=2))
    assert 0 <= float(trainer.callback_metrics["train/reward/text_soft"]) < 1
