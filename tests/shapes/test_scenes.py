"""Scenes: each obeys its caption and the layout rules, and is a pure function of seed and index."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from blip3o.shapes import (
    SHAPES,
    SHAPES_MINI,
    TAGS,
    WORLDS,
    World,
    bounding_box,
    box_gap,
    captions,
    holds,
    is_held_out,
    parse_caption,
    sample_scene,
    scene_for_caption,
)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("tag", TAGS)
def test_layout_rules(name: str, tag: str) -> None:
    world = WORLDS[name]
    for index in range(300):
        scene = sample_scene(world, 11, index, split="all", tag=tag)
        spec = parse_caption(scene.caption, world)
        assert scene.tag == spec.tag == tag
        kinds = [kind for kind in spec.objects for _ in range(kind.count)]
        assert [obj.shape for obj in scene.objects] == [kind.shape for kind in kinds]
        for obj, kind in zip(scene.objects, kinds, strict=True):
            assert obj.color in ((kind.color,) if kind.color else world.colors)
            low, high = world.half_extents[len(kinds)]
            assert low <= obj.h <= high
            left, top, right, bottom = bounding_box(obj)
            assert min(left, top) >= -1e-9 and max(right, bottom) <= world.canvas + 1e-9
        for a, b in combinations(map(bounding_box, scene.objects), 2):
            assert box_gap(a, b) >= 3
        if spec.relation:
            first, second = scene.objects
            dx, dy = second.x - first.x, second.y - first.y
            along, across = (dx, dy) if spec.relation in ("left of", "right of") else (dy, dx)
            assert abs(along) >= abs(across) + 4
            assert (along > 0) == (spec.relation in ("left of", "above"))


def test_relations_follow_the_larger_axis() -> None:
    assert holds("left of", 10, 3) and holds("right of", -10, 3)
    assert holds("above", 3, 10) and holds("below", 3, -10)
    assert not holds("left of", 10, 11) and not holds("left of", -10, 0)
    assert holds("left of", 10, 6, margin=4) and not holds("left of", 10, 7, margin=4)
    assert not holds("above", 0, 0)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_sampling_is_pure(world: World) -> None:
    forward = [sample_scene(world, 5, index) for index in range(50)]
    np.random.seed(0)
    backward = [sample_scene(world, 5, index) for index in reversed(range(50))]
    assert forward == backward[::-1]
    assert len(set(forward)) > 45
    assert forward != [sample_scene(world, 6, index) for index in range(50)]


def test_sampling_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    sample_scene(SHAPES, 0, 0)
    assert np.random.random() == expected


def test_splits_are_respected() -> None:
    for index in range(300):
        assert not is_held_out(sample_scene(SHAPES, 2, index).caption)
        held_out = sample_scene(SHAPES, 2, index, split="held_out")
        assert held_out.caption in captions(SHAPES, held_out.tag, "held_out")


def test_tags_backgrounds_and_free_colours_are_evenly_drawn() -> None:
    scenes = [sample_scene(SHAPES, 4, index) for index in range(3000)]
    tags = Counter(scene.tag for scene in scenes)
    assert set(tags) == set(TAGS) and min(tags.values()) > 400
    assert 1350 < sum(scene.background == "white" for scene in scenes) < 1650
    single = [scene for scene in scenes if scene.tag == "single_object"]
    assert {scene.objects[0].color for scene in single} == set(SHAPES.colors)
    pairs = [{obj.color for obj in scene.objects} for scene in scenes if scene.tag == "two_object"]
    assert any(len(pair) == 1 for pair in pairs) and any(len(pair) == 2 for pair in pairs)


def test_tag_weights() -> None:
    weights = {"counting": 3.0, "colors": 1.0}
    tags = Counter(sample_scene(SHAPES, 4, i, tag_weights=weights).tag for i in range(800))
    assert set(tags) == {"counting", "colors"} and 540 < tags["counting"] < 660


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        sample_scene(SHAPES, 0, 0, tag="colors", tag_weights={"colors": 1.0})
    with pytest.raises(ValueError, match="not tags of this world"):
        sample_scene(SHAPES, 0, 0, tag_weights={"poetry": 1.0})
    for weights in ({}, {"colors": 0.0}, {"colors": -1.0}, {"colors": float("nan")}):
        with pytest.raises(ValueError, match="tag_weights"):
            sample_scene(SHAPES, 0, 0, tag_weights=weights)
    with pytest.raises(ValueError, match="tag"):
        sample_scene(SHAPES, 0, 0, tag="poetry")
    with pytest.raises(ValueError, match="split"):
        sample_scene(SHAPES, 0, 0, split="test")  # type: ignore[arg-type]


def test_scene_for_caption_draws_what_is_asked() -> None:
    rng = np.random.default_rng(0)
    scene = scene_for_caption(SHAPES_MINI, "a red circle below a blue square", rng)
    assert [(obj.color, obj.shape) for obj in scene.objects] == [("red", "circle"), ("blue", "square")]
    assert scene.objects[0].y > scene.objects[1].y
    assert scene != scene_for_caption(SHAPES_MINI, "a red circle below a blue square", rng)


def test_a_tight_world_still_gets_its_layouts() -> None:
    world = World(half_extents={1: (10, 31), 2: (11, 30), 3: (11, 25), 4: (11, 20)})
    for index in range(40):
        scene = sample_scene(world, 0, index)
        for a, b in combinations(map(bounding_box, scene.objects), 2):
            assert box_gap(a, b) >= 3
