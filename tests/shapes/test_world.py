"""Worlds: the presets' contents, and that impossible worlds are refused with a remedy."""

import pickle

import pytest

from blip3o.shapes import SHAPES, SHAPES_MINI, WORLDS, World, get_world


def test_presets_hold_what_their_names_promise() -> None:
    assert get_world("shapes") is SHAPES and get_world("shapes-mini") is SHAPES_MINI
    assert (SHAPES.canvas, len(SHAPES.colors), len(SHAPES.shapes), len(SHAPES.tags)) == (64, 6, 5, 6)
    assert SHAPES.object_counts == (1, 2, 3, 4)
    assert (SHAPES_MINI.canvas, SHAPES_MINI.colors) == (32, ("red", "green", "blue"))
    assert SHAPES_MINI.shapes == ("circle", "square", "triangle")
    assert SHAPES_MINI.object_counts == (1, 2)


def test_unknown_preset_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'moons'.*shapes-mini"):
        get_world("moons")


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_worlds_hash_compare_and_pickle(world: World) -> None:
    copy = pickle.loads(pickle.dumps(world))
    assert copy == world and hash(copy) == hash(world)
    assert World(half_extents={1: (10, 11), 2: (8, 9), 3: (7.5, 8), 4: (7.5, 8)}) != SHAPES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"canvas": 8}, r"canvas \(8\)"),
        ({"colors": ("red", "pink")}, "colors"),
        ({"colors": ()}, "colors"),
        ({"shapes": ("circle", "circle")}, "shapes"),
        ({"shapes": ("circle",)}, "add a shape or drop"),
        ({"colors": ("red",)}, "color_attr"),
        ({"tags": ("reasoning",)}, "tags"),
        ({"max_count": 5}, r"max_count \(5\)"),
        ({"gap": 0.0}, "gap"),
        ({"position_margin": -1.0}, "position_margin"),
        ({"position_margin": 17.0}, "position_margin"),
        ({"half_extents": {1: (10, 16)}}, "no range for 2"),
        ({"half_extents": {1: (16, 10)}, "tags": ("colors",)}, "low <= high"),
        ({"canvas": 32}, "does not fit"),
        ({"half_extents": {1: (10, 33)}, "tags": ("colors",)}, "does not fit"),
    ],
)
def test_impossible_worlds_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(**arguments)
