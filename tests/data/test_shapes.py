"""The shapes data: rows are pure, captions of training and validation apart, descriptors add up."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from blip3o.data.shapes import ShapesDataModule, describe_cells, make_row
from blip3o.pixels import to_tensor, to_uint8
from blip3o.shapes import BACKGROUNDS, SHAPES, SHAPES_MINI, is_held_out, parse_caption, sample_scene, verify

KINDS = (*BACKGROUNDS, *SHAPES.colors, *SHAPES.shapes)


def data(**arguments: Any) -> ShapesDataModule:
    return ShapesDataModule(**{"world": "shapes-mini", "batch_size": 3, "num_val": 5, "num_prompts": 6, **arguments})


def test_a_row_is_a_pure_function_of_seed_and_index() -> None:
    first, again = (make_row(5, world=SHAPES_MINI, seed=1, describe=4) for _ in range(2))
    assert first["index"] == 5 and first["caption"] == again["caption"]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["descriptors"], again["descriptors"])
    rows = [make_row(index, world=SHAPES_MINI, seed=seed) for index in range(4) for seed in (1, 2)]
    assert len({row["image"].numpy().tobytes() for row in rows}) == 8


def test_images_show_their_captions() -> None:
    rows = [make_row(index, world=SHAPES, seed=3) for index in range(12)]
    images = torch.stack([row["image"] for row in rows])
    assert images.shape == (12, 3, 64, 64)
    assert images.min() >= -1 and images.max() <= 1
    verdicts = verify(to_uint8(images), [row["caption"] for row in rows], SHAPES)
    assert [verdict.reason for verdict in verdicts] == [""] * 12


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(pixels)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_uint8(tensor), pixels)
    assert torch.equal(to_tensor(pixels[0]), tensor[0])
    assert np.array_equal(to_uint8(tensor * 2)[0, 0, 0], [0, 0, 0]), "values out of range are clamped"


@pytest.mark.parametrize("grid", [4, 8])
def test_the_shares_of_a_cell_add_up_to_the_whole_cell(grid: int) -> None:
    for index in range(6):
        scene = sample_scene(SHAPES, 0, index)
        descriptors = describe_cells(scene, SHAPES, grid)
        assert descriptors.shape == (grid**2, len(KINDS) + 3) and descriptors.dtype == np.float32
        shares = descriptors[:, : len(KINDS)]
        b, c = len(BACKGROUNDS), len(SHAPES.colors)
        assert shares.min() >= 0
        np.testing.assert_allclose(shares[:, : b + c].sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(shares[:, b : b + c].sum(1), shares[:, b + c :].sum(1), atol=1e-5)
        assert (shares[:, KINDS.index(scene.background)] < 1).any(), "objects cover something"


def test_descriptors_say_where_their_objects_are() -> None:
    """Offsets and extents are weighted by the object's share of the cell."""
    scene = next(s for s in (sample_scene(SHAPES, 0, i) for i in range(50)) if len(s.objects) == 1)
    (obj,) = scene.objects
    descriptors = describe_cells(scene, SHAPES, 8)
    share = descriptors[:, KINDS.index(obj.color)]
    assert np.array_equal(share, descriptors[:, KINDS.index(obj.shape)])
    for cell in np.flatnonzero(share):
        x, y = (cell % 8 + 0.5) * 8, (cell // 8 + 0.5) * 8
        expected = share[cell] * np.array([(obj.x - x) / 16, (obj.y - y) / 16, obj.h / 16])
        np.testing.assert_allclose(descriptors[cell, -3:], expected, atol=1e-5)
    assert not descriptors[share == 0][:, -3:].any()


def test_no_training_caption_is_held_out() -> None:
    captions = {make_row(index, world=SHAPES, seed=0)["caption"] for index in range(300)}
    assert len(captions) > 50
    assert not any(is_held_out(caption) for caption in captions)


def test_validation_captions_are_held_out_where_they_name_a_colour() -> None:
    rows = [row for batch in data(num_val=40).val_dataloader() for row in batch["caption"]]
    assert len(rows) == 40
    coloured = [caption for caption in rows if any(color in caption.split() for color in SHAPES_MINI.colors)]
    assert coloured and all(is_held_out(caption) for caption in coloured)


def test_prompts_are_given_for_prediction_in_order() -> None:
    module = data(num_prompts=6)
    batches = list(module.predict_dataloader())
    assert [caption for batch in batches for caption in batch["caption"]] == list(module.prompts)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))


def test_training_batches_hold_the_rows_of_the_stream() -> None:
    module = data(describe=4)
    first, second = islice(iter(module.train_dataloader()), 2)
    assert first["index"].tolist() == [0, 1, 2] and second["index"].tolist() == [3, 4, 5]
    assert first["image"].shape == (3, 3, 32, 32) and first["descriptors"].shape[:2] == (3, 16)
    assert torch.equal(
        torch.cat([first["image"], second["image"]]),
        torch.stack([module._make_row(index)["image"] for index in range(6)]),
    )
    assert second["caption"][0] == make_row(3, world=SHAPES_MINI, seed=0)["caption"]


def test_a_resumed_module_goes_on_with_the_next_batch() -> None:
    module = data()
    module.load_state_dict({"batches_seen": 4})
    assert next(iter(module.train_dataloader()))["index"].tolist() == [12, 13, 14]
    assert data().state_dict() == {"batches_seen": 0}


def test_tag_weights_choose_the_tasks() -> None:
    rows = [make_row(i, world=SHAPES, seed=0, tag_weights={"counting": 1.0}) for i in range(10)]
    assert {parse_caption(row["caption"], SHAPES).tag for row in rows} == {"counting"}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"describe \(5\) must divide the canvas \(32\)"):
        data(describe=5)
    with pytest.raises(ValueError, match="moons"):
        data(world="moons")
