"""Rendering: areas, outlines, colours, anti-aliasing, the object map, and speed."""

import time
from dataclasses import replace

import numpy as np
import pytest

from blip3o.shapes import (
    BACKGROUNDS,
    COLORS,
    SHAPE_NAMES,
    SHAPES,
    WORLDS,
    Scene,
    ShapeObject,
    World,
    bounding_box,
    render,
    render_object_map,
    sample_scene,
)
from blip3o.shapes.geometry import AREAS, CENTROIDS, signed_distance
from blip3o.shapes.scenes import Background


def one_object(shape: str, color: str = "red", x: float = 31.3, y: float = 30.6, h: float = 13.7) -> Scene:
    return Scene("white", (ShapeObject(shape, color, x, y, h),), "colors", f"a {color} {shape}")


def coverage_of(image: np.ndarray, color: str) -> np.ndarray:
    direction = np.array(COLORS[color], float) - BACKGROUNDS["white"]
    return (image - np.array(BACKGROUNDS["white"], float)) @ direction / (direction @ direction)


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_area_centroid_and_extent_match_the_formulas(shape: str) -> None:
    scene = one_object(shape)
    obj = scene.objects[0]
    coverage = coverage_of(render(scene, SHAPES), "red")
    assert coverage.sum() == pytest.approx(AREAS[shape] * obj.h**2, rel=0.01)
    centers = np.arange(64) + 0.5
    assert coverage.sum(0) @ centers / coverage.sum() == pytest.approx(obj.x, abs=0.05)
    expected = obj.y + CENTROIDS[shape] * obj.h
    assert coverage.sum(1) @ centers / coverage.sum() == pytest.approx(expected, abs=0.1)
    rows, columns = np.nonzero(coverage > 0.02)
    left, top, right, bottom = bounding_box(obj)
    assert np.allclose([columns.min(), columns.max() + 1], [left, right], atol=1.5)
    assert np.allclose([rows.min(), rows.max() + 1], [top, bottom], atol=1.5)


def test_signed_distance_against_known_points() -> None:
    def distance(shape: str, x: float, y: float) -> float:
        return float(signed_distance(shape, np.array(x), np.array(y), 10.0))

    assert distance("circle", 0, 0) == pytest.approx(-10)
    assert distance("square", 12, 0) == pytest.approx(2.7)
    assert distance("cross", 5, 5) == pytest.approx(1.4)
    assert distance("triangle", 0, -9.5) == pytest.approx(0)  # apex
    assert distance("triangle", 9.5, 9.5) == pytest.approx(0)  # lower corner
    top = -10.5 * (1 + np.cos(np.pi / 5)) / 2
    assert distance("star", 0, top) == pytest.approx(0, abs=1e-6)  # upper tip
    assert distance("star", 0, top + 10.5 * 1.45) == pytest.approx(0, abs=1e-6)  # notch between the feet
    assert distance("star", 0, top + 10.5) < 0 < distance("star", 0, -top)
    with pytest.raises(ValueError, match="hexagon"):
        distance("hexagon", 0, 0)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_flat_colours_and_background(background: Background) -> None:
    for color, rgb in COLORS.items():
        scene = replace(one_object("square", color), background=background)
        image = render(scene, SHAPES)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert tuple(image[30, 31]) == rgb and tuple(image[0, 0]) == BACKGROUNDS[background]


def test_edges_are_antialiased_exactly_along_the_axes() -> None:
    image = render(one_object("square", x=30.25, y=32, h=10), SHAPES)
    coverage = coverage_of(image, "red")
    assert coverage[32, 20] == pytest.approx(0.05, abs=0.01)  # left edge at 20.95
    assert coverage[32, 39] == pytest.approx(0.55, abs=0.01)  # right edge at 39.55


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_object_map_agrees_with_the_picture(world: World) -> None:
    for index in range(100):
        scene = sample_scene(world, 8, index)
        image, owner = render(scene, world).astype(int), render_object_map(scene, world)
        assert owner.dtype == np.int8 and owner.shape == image.shape[:2]
        assert set(np.unique(owner)) == set(range(-1, len(scene.objects)))
        background = np.array(BACKGROUNDS[scene.background])
        for number, obj in enumerate(scene.objects):
            nearer = np.abs(image - COLORS[obj.color]).sum(-1) <= np.abs(image - background).sum(-1) + 6
            assert nearer[owner == number].all()
        assert (np.abs(image - background).sum(-1) > 6)[owner >= 0].all()


def test_rendering_is_pure_and_clips_what_leaves_the_canvas() -> None:
    scene = one_object("star", x=2, y=60)
    assert np.array_equal(render(scene, SHAPES), render(scene, SHAPES))
    outside = one_object("circle", x=-80, y=200)
    assert (render(outside, SHAPES) == 255).all() and (render_object_map(outside, SHAPES) == -1).all()


def test_throughput() -> None:
    for index in range(20):
        render(sample_scene(SHAPES, 0, index), SHAPES)
    start = time.process_time()
    for index in range(300):
        render(sample_scene(SHAPES, 1, index), SHAPES)
    assert 300 / (time.process_time() - start) > 330
