"""The verifier: right on clean, noisy and blurred pictures, and strict about everything else."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from blip3o.shapes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    WORLDS,
    Scene,
    World,
    bounding_box,
    captions,
    detect,
    render,
    render_object_map,
    sample_scene,
    verify,
)
from blip3o.shapes.geometry import signed_distance

NUM_IMAGES = 240


def quantised(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=WORLDS.values(), ids=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def scenes(world: World) -> list[Scene]:
    return [sample_scene(world, 21, index, split="all") for index in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def images(world: World, scenes: list[Scene]) -> np.ndarray:
    return np.stack([render(scene, world) for scene in scenes])


def accuracy(images: np.ndarray, scenes: list[Scene], world: World) -> float:
    verdicts = verify(images, [scene.caption for scene in scenes], world)
    assert all(verdict.correct == (verdict.reason == "") for verdict in verdicts)
    return float(np.mean([verdict.correct for verdict in verdicts]))


def test_clean_pictures(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    assert accuracy(images, scenes, world) >= 0.995


def test_noisy_pictures(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    noise = np.random.default_rng(0).normal(0, 8, images.shape)
    assert accuracy(quantised(images + noise), scenes, world) >= 0.97


def test_blurred_pictures(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    blurred = ndimage.gaussian_filter(images.astype(float), (0, 1, 1, 0))
    assert accuracy(quantised(blurred), scenes, world) >= 0.97


def test_dull_and_tinted_colours_are_still_read(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    base = np.array([BACKGROUNDS[scene.background] for scene in scenes])[:, None, None]
    assert accuracy(quantised(base + 0.9 * (images - base.astype(float))), scenes, world) >= 0.97
    assert accuracy(quantised(images + np.array([8.0, -8.0, 6.0])), scenes, world) >= 0.97


def test_detections_report_the_scene(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    for seen, scene in zip(detect(images, world), scenes, strict=True):
        assert (seen.background, seen.defect) == (scene.background, None)
        found = [(d.shape, d.color) for d in seen.detections]
        assert sorted(found) == sorted((obj.shape, obj.color) for obj in scene.objects)
        for obj in scene.objects:
            nearest = min(seen.detections, key=lambda d: abs(d.x - obj.x) + abs(d.y - obj.y))
            errors = np.abs([nearest.x - obj.x, nearest.y - obj.y, nearest.h - obj.h])
            assert errors.max() < 0.15 and 0.9 < nearest.score <= 1


def test_the_result_does_not_depend_on_the_batch(images: np.ndarray, world: World) -> None:
    together = detect(images[:40], world)
    assert together == [detect(image[None], world)[0] for image in images[:40]]
    assert together == detect(list(images[:40]), world)


def test_other_captions_are_rejected(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    """A scene of a colour task fits no other caption of that task."""
    rng = np.random.default_rng(1)
    chosen, wrong = [], []
    for number, scene in enumerate(scenes):
        tag = scene.tag
        others = [c for c in captions(world, tag) if c != scene.caption]
        if tag in ("single_object", "counting", "colors"):
            chosen.append(number)
            wrong.append(others[rng.integers(len(others))])
        elif tag == "position":
            relation = next(name for name in RELATIONS if f" {name} " in scene.caption)
            for other in set(RELATIONS) - {relation}:
                chosen.append(number)
                wrong.append(scene.caption.replace(relation, other))
        elif tag == "color_attr":
            a, b = (obj.color for obj in scene.objects)
            swapped = scene.caption.replace(a, "?").replace(b, a).replace("?", b)
            swapped = swapped.replace("a orange", "an orange")
            for color in set(world.colors) - {"orange"}:
                swapped = swapped.replace(f"an {color}", f"a {color}")
            chosen.append(number)
            wrong.append(swapped)
    verdicts = verify(images[chosen], wrong, world)
    assert len(verdicts) > NUM_IMAGES / 2 and not any(verdict.correct for verdict in verdicts)
    assert all(verdict.reason for verdict in verdicts)


def test_missing_and_extra_objects_are_rejected(scenes: list[Scene], world: World) -> None:
    pairs = [scene for scene in scenes if len(scene.objects) == 2]
    fewer = [replace(scene, objects=scene.objects[1:]) for scene in pairs[::2]]
    more = [scene for scene in (with_copy(scene, world) for scene in pairs[1::2]) if scene is not None]
    assert len(more) > 10
    edited = fewer + more
    pictures = np.stack([render(scene, world) for scene in edited])
    assert accuracy(pictures, edited, world) == 0


def with_copy(scene: Scene, world: World) -> Scene | None:
    """The scene with a third object in a free corner, or None where all are taken."""
    h = world.half_extents[2][0]
    for x in (h + 0.5, world.canvas - h - 0.5):
        for y in (h + 0.5, world.canvas - h - 0.5):
            extra = replace(scene.objects[0], x=x, y=y, h=h)
            if all(max(abs(o.x - x), abs(o.y - y)) > o.h + h + 3 for o in scene.objects):
                return replace(scene, objects=(*scene.objects, extra))
    return None


Damage = Callable[[Scene, np.ndarray, World, np.random.Generator], np.ndarray]


def grid(world: World) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(world.canvas) + 0.5, np.arange(world.canvas) + 0.5)
    return x, y


def cut_in_half(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """Takes away one side; the right or lower one, as the upper part of a triangle is a triangle."""
    obj = scene.objects[0]
    x, y = grid(world)
    left, top, right, bottom = bounding_box(obj)
    around = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
    sideways = obj.shape == "triangle" or rng.random() < 0.5
    image[around & ((x > obj.x) if sideways else (y > obj.y))] = BACKGROUNDS[scene.background]
    return image


def two_coloured(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    obj = scene.objects[0]
    other = next(color for color in world.colors if color != obj.color)
    image[(render_object_map(scene, world) == 0) & (grid(world)[0] > obj.x)] = COLORS[other]
    return image


def pierced(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    obj = scene.objects[0]
    x, y = grid(world)
    image[np.hypot(x - obj.x, y - obj.y) < 0.35 * obj.h] = BACKGROUNDS[scene.background]
    return image


def grown_together(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """A second object of the same kind and colour over the first, shifted towards the canvas's middle."""
    obj = scene.objects[0]
    shift = [0.7 * obj.h if place < world.canvas / 2 else -0.7 * obj.h for place in (obj.x, obj.y)]
    blob = replace(obj, x=obj.x + shift[0], y=obj.y + shift[1])
    return render(replace(scene, objects=(*scene.objects, blob)), world)


def overlapped_by_another_colour(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    obj = scene.objects[0]
    other = next(color for color in world.colors if color != obj.color)
    blob = replace(obj, x=obj.x + (0.8 if obj.x < world.canvas / 2 else -0.8) * obj.h, color=other)
    return render(replace(scene, objects=(*scene.objects, blob)), world)


def between_two_shapes(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """An outline half-way between circle and square, a rounded square."""
    obj = scene.objects[0]
    x, y = grid(world)
    distance = sum(signed_distance(shape, x - obj.x, y - obj.y, obj.h) / 2 for shape in ("circle", "square"))
    rest = render(replace(scene, objects=scene.objects[1:]), world).astype(float)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return quantised(rest + cover * (np.array(COLORS[obj.color]) - rest))


def grey_patch(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    size = world.canvas // 10
    row, column = rng.integers(0, world.canvas - size, 2)
    image[row : row + size, column : column + size] = 128
    return image


def half_faded(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    base = np.array(BACKGROUNDS[scene.background])
    return quantised(base + 0.5 * (image - base.astype(float)))


def sprinkled(scene: Scene, image: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    places = rng.integers(0, world.canvas, (2, world.canvas**2 // 40))
    image[places[0], places[1]] = COLORS[world.colors[0]]
    return image


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_half,
        two_coloured,
        pierced,
        grown_together,
        overlapped_by_another_colour,
        between_two_shapes,
        grey_patch,
        half_faded,
        sprinkled,
    ],
)
def test_damaged_pictures_are_rejected(damage: Damage, images: np.ndarray, scenes: list[Scene], world: World) -> None:
    rng = np.random.default_rng(2)
    pictures = np.stack([damage(scene, images[i].copy(), world, rng) for i, scene in enumerate(scenes[:80])])
    assert accuracy(pictures, scenes[:80], world) <= 0.03


def test_pictures_without_a_scene_are_rejected(world: World) -> None:
    size = (world.canvas, world.canvas, 3)
    pictures = np.stack(
        [
            np.full(size, 255, np.uint8),
            np.full(size, 128, np.uint8),
            np.full(size, (220, 30, 30), np.uint8),
            np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8),
        ]
    )
    verdicts = verify(pictures, ["a circle"] * 4, world)
    assert not any(verdict.correct for verdict in verdicts)
    assert [verdict.background for verdict in verdicts] == ["white", None, None, None]
    assert "neither white nor black" in verdicts[1].reason


def test_reasons_name_what_is_wrong() -> None:
    scene = sample_scene(SHAPES, 0, 0, tag="colors")
    picture = render(scene, SHAPES)[None]
    (obj,) = scene.objects
    other = next(color for color in SHAPES.colors if color not in (obj.color, "orange"))
    assert f"found {obj.color}" in verify(picture, [f"a {other} {obj.shape}"], SHAPES)[0].reason
    other = next(shape for shape in SHAPES.shapes if shape != obj.shape)
    reason = verify(picture, [f"a {other}"], SHAPES)[0].reason
    assert f"expected {other}=1, found 0" in reason and f"{obj.color} {obj.shape}" in reason


def test_max_mismatch_sets_the_strictness(images: np.ndarray, scenes: list[Scene], world: World) -> None:
    assert all(seen.defect for seen in detect(images[:20], world, max_mismatch=0.0))


def test_other_inputs_are_refused() -> None:
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="float64"):
        detect(pictures.astype(float), SHAPES)
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\)"):
        detect(pictures[0], SHAPES)
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\)"):
        detect(pictures.transpose(0, 3, 1, 2), SHAPES)
    with pytest.raises(ValueError, match="canvas"):
        detect(pictures[:, :32, :32], SHAPES)
    with pytest.raises(ValueError, match="several shapes"):
        detect([pictures[0], pictures[0, :32]], SHAPES)
    with pytest.raises(ValueError, match="as many as"):
        verify(pictures, ["a circle"], SHAPES)
    with pytest.raises(ValueError, match="cannot be read"):
        verify(pictures[:1], ["a hexagon"], SHAPES)
    assert verify([], [], SHAPES) == []


def test_throughput() -> None:
    pictures = np.stack([render(sample_scene(SHAPES, 1, index), SHAPES) for index in range(96)])
    detect(pictures, SHAPES)
    start = time.process_time()
    detect(pictures, SHAPES)
    assert len(pictures) / (time.process_time() - start) > 100
