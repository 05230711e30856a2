"""Captions of a world of shapes or words without pictures, for training by rewards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from blip3o.data.prompts import collate_prompts
from blip3o.data.shapes import ShapesDataModule
from blip3o.data.stream import Row
from blip3o.shapes import World
from blip3o.shapes.any_world import AnyWorld, any_evaluation_captions, any_metadata, sample_any_scene
from blip3o.shapes.captions import Split
from blip3o.shapes.text import TextWorld


def caption_row(index: int, caption: str, world: AnyWorld) -> Row:
    """`index`, `prompt` and `caption` (the same), and `metadata`: GenEval's of shapes, or word and colour."""
    return {"index": index, "prompt": caption, "caption": caption, "metadata": any_metadata(caption, world)}


def make_prompt(
    index: int, *, world: AnyWorld, seed: int, split: Split = "train", tag_weights: Mapping[str, float] | None = None
) -> Row:
    """Row `index` of a stream of captions; the captions are those of the scenes that `ShapesDataModule` renders."""
    scene = sample_any_scene(world, seed, index, split=split, tag_weights=tag_weights)
    return caption_row(index, scene.caption, world)


class ShapesPromptsDataModule(ShapesDataModule):
    """Captions of a world of shapes or words: those of training, endless; and held-out ones, balanced over the tags.

    Args:
        world: a world, or the name of one in `blip3o.shapes.WORLDS` or `blip3o.shapes.text.TEXT_WORLDS`.
        batch_size: prompts a batch on one process.
        val_batch_size: prompts a batch in validation, where one image is made of each; `batch_size` when None.
        seed: stream of captions.
        num_val: held-out captions of validation, and others of test.
        num_prompts: held-out captions to draw in prediction.
        tag_weights: relative frequency of each tag in training; uniform when None.
        num_workers: processes that make rows; 0 makes them in the training process.
    """

    def __init__(
        self,
        *,
        world: str | World | TextWorld = "shapes",
        batch_size: int = 8,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_val: int = 192,
        num_prompts: int = 60,
        tag_weights: dict[str, float] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            world=world,
            batch_size=batch_size,
            seed=seed,
            num_val=num_val,
            num_prompts=num_prompts,
            num_workers=num_workers,
        )
        if val_batch_size is not None and val_batch_size < 1:
            raise ValueError(f"val_batch_size ({val_batch_size}) must be at least 1.")
        self.val_batch_size = val_batch_size or batch_size
        self._make_row = partial(make_prompt, world=self.world, seed=seed, tag_weights=tag_weights)
        self._collate = collate_prompts

    def _held_out_rows(self, seed: int) -> list[Row]:
        held_out = any_evaluation_captions(self.world, self.num_val, seed)
        return [caption_row(index, caption, self.world) for index, caption in enumerate(held_out)]
