"""The shapes world as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import reduce
from lightning import LightningDataModule
from torch.utils.data import DataLoader, default_collate

from blip3o.data.stream import Row, RowStream, refuse_limited_batches
from blip3o.pixels import to_tensor
from blip3o.shapes import World, render_object_map
from blip3o.shapes.any_world import AnyWorld, any_evaluation_captions, get_any_world, render_any, sample_any_scene
from blip3o.shapes.captions import Split
from blip3o.shapes.scenes import Scene
from blip3o.shapes.text import TextWorld
from blip3o.shapes.world import BACKGROUNDS


def describe_cells(scene: Scene, world: World, grid: int) -> np.ndarray:
    """What a teacher that understands the scene would say of every cell of a grid.

    Per cell: the area share of each background, each colour and each shape, and of the objects in the cell their
    offset from the cell's centre (x, y) and their half-extent, in units of 16 pixels and weighted by their area.

    Args:
        scene: the scene.
        world: where it comes from.
        grid: cells along each side; it must divide the canvas.

    Returns:
        (grid * grid, len(backgrounds) + len(colors) + len(shapes) + 3) float32, rows in raster order.
    """
    cell = world.canvas // grid
    owner = render_object_map(scene, world)
    owned = (owner[None] == np.arange(-1, len(scene.objects))[:, None, None]).astype(np.float32)
    share = reduce(owned, "n (r p) (c q) -> (r c) n", "mean", p=cell, q=cell)
    columns = np.tile((np.arange(grid) + 0.5) * cell, grid)
    rows = np.repeat((np.arange(grid) + 0.5) * cell, grid)
    kinds = (*BACKGROUNDS, *world.colors, *world.shapes)
    out = np.zeros((grid * grid, len(kinds) + 3), dtype=np.float32)
    out[:, kinds.index(scene.background)] = share[:, 0]
    for obj, area in zip(scene.objects, share[:, 1:].T, strict=True):
        out[:, kinds.index(obj.color)] += area
        out[:, kinds.index(obj.shape)] += area
        out[:, -3] += area * (obj.x - columns) / 16
        out[:, -2] += area * (obj.y - rows) / 16
        out[:, -1] += area * obj.h / 16
    return out


def make_row(
    index: int,
    *,
    world: AnyWorld,
    seed: int,
    split: Split = "train",
    tag_weights: Mapping[str, float] | None = None,
    describe: int | None = None,
) -> Row:
    """Row `index` of a stream: `index`, `caption`, `image` (3, H, W) in [-1, 1], `descriptors` if asked for."""
    scene = sample_any_scene(world, seed, index, split=split, tag_weights=tag_weights)
    row: Row = {"index": index, "caption": scene.caption, "image": to_tensor(render_any(scene, world))}
    if describe is not None:
        assert isinstance(scene, Scene) and isinstance(world, World), "words have no descriptors"
        row["descriptors"] = torch.from_numpy(describe_cells(scene, world, describe))
    return row


class ShapesDataModule(LightningDataModule):
    """Captioned scenes of a world of shapes or words, rendered as they are needed.

    Training rows come from the training captions; every row is a pure function of (seed, index). Validation rows
    are scenes of held-out captions, and `prompts` are held-out captions that `blip3o predict` draws.

    Args:
        world: a world, or the name of one in `blip3o.shapes.WORLDS` or `blip3o.shapes.text.TEXT_WORLDS`.
        batch_size: rows a batch on one process.
        seed: stream of scenes.
        num_val: validation scenes.
        num_prompts: held-out captions to draw in prediction.
        tag_weights: relative frequency of each tag in training; uniform when None.
        describe: cells along each side of the `descriptors` that tokenizer training aligns with; none when None, nor
            for words.
        num_workers: processes that render; 0 renders in the training process.
    """

    def __init__(
        self,
        *,
        world: str | World | TextWorld = "shapes",
        batch_size: int = 48,
        seed: int = 0,
        num_val: int = 192,
        num_prompts: int = 60,
        tag_weights: dict[str, float] | None = None,
        describe: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.world = get_any_world(world)
        if describe is not None and isinstance(self.world, TextWorld):
            raise ValueError(f"describe ({describe}) is of shapes, but world ({world}) shows words; leave it out.")
        if describe is not None and (describe < 1 or self.world.canvas % describe):
            raise ValueError(f"describe ({describe}) must divide the canvas ({self.world.canvas}).")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_val", num_val, 1),
            ("num_prompts", num_prompts, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        self.batch_size = batch_size
        self.seed = seed
        self.num_val = num_val
        self.num_workers = num_workers
        self.prompts = any_evaluation_captions(self.world, num_prompts, seed)
        self._make_row = partial(make_row, world=self.world, seed=seed, tag_weights=tag_weights, describe=describe)
        self._collate: Callable[[list[Row]], Row] = default_collate
        self.val_batch_size = batch_size
        self._first_batch = 0

    def train_dataloader(self) -> DataLoader[Row]:
        """Endless; continues where a resumed run stopped.

        Raises:
            ValueError: if the trainer limits the batches of an epoch: the next one would repeat the same rows.
        """
        trainer = self.trainer
        refuse_limited_batches(trainer)
        stream = RowStream(
            self._make_row,
            batch_size=self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            first_batch=self._first_batch,
        )
        return DataLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[Row]:
        """`num_val` scenes of held-out captions."""
        return self._held_out(self.seed + 1)

    def test_dataloader(self) -> DataLoader[Row]:
        """`num_val` other scenes of held-out captions."""
        return self._held_out(self.seed + 2)

    def _held_out(self, seed: int) -> DataLoader[Row]:
        rows = self._held_out_rows(seed)
        return DataLoader(rows, batch_size=self.val_batch_size, collate_fn=self._collate)  # type: ignore[arg-type]

    def _held_out_rows(self, seed: int) -> list[Row]:
        return [self._make_row(index, seed=seed, split="held_out", tag_weights=None) for index in range(self.num_val)]

    def predict_dataloader(self) -> DataLoader[Row]:
        """The held-out captions as rows of `caption` and `index`."""
        rows = [{"index": index, "caption": caption} for index, caption in enumerate(self.prompts)]
        return DataLoader(rows, batch_size=self.batch_size)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Batches seen, so that a resumed run goes on with the next one."""
        trainer = self.trainer
        seen = trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0
        return {"batches_seen": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches that `state_dict` has seen."""
        self._first_batch = int(state_dict["batches_seen"])
