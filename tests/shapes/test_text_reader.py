"""The reader of words: right on clean, noisy and blurred pictures, and strict about everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from blip3o.shapes import BACKGROUNDS, COLORS, SHAPES, render, sample_scene
from blip3o.shapes.font import LETTERS, num_columns
from blip3o.shapes.text import TEXT, TEXT_MINI, TextScene, TextWorld, render_text, sample_text_scene, text_caption
from blip3o.shapes.text_reader import read_text, verify_text

NUM_IMAGES = {TEXT: 240, TEXT_MINI: 40}


def quantised(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=list(NUM_IMAGES), ids=["text", "text-mini"])
def world(request: pytest.FixtureRequest) -> TextWorld:
    return request.param


@pytest.fixture(scope="module")
def scenes(world: TextWorld) -> list[TextScene]:
    return [sample_text_scene(world, 21, index, split="all") for index in range(NUM_IMAGES[world])]


@pytest.fixture(scope="module")
def images(world: TextWorld, scenes: list[TextScene]) -> np.ndarray:
    return np.stack([render_text(scene, world) for scene in scenes])


def accuracy(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> float:
    verdicts = verify_text(images, [scene.caption for scene in scenes], world)
    assert all(verdict.correct == (verdict.reason == "") for verdict in verdicts)
    return float(np.mean([verdict.correct for verdict in verdicts]))


def test_clean_pictures(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> None:
    assert accuracy(images, scenes, world) >= 0.995


def test_noisy_pictures(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> None:
    noise = np.random.default_rng(0).normal(0, 8, images.shape)
    assert accuracy(quantised(images + noise), scenes, world) >= 0.97


def test_blurred_pictures(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> None:
    blurred = ndimage.gaussian_filter(images.astype(float), (0, 1, 1, 0))
    assert accuracy(quantised(blurred), scenes, world) >= 0.97


def test_dull_and_tinted_colours_are_still_read(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> None:
    few, pictures = scenes[:40], images[:40].astype(float)
    base = np.array([BACKGROUNDS[scene.background] for scene in few])[:, None, None]
    assert accuracy(quantised(base + 0.85 * (pictures - base)), few, world) >= 0.97
    assert accuracy(quantised(pictures + np.array([8.0, -8.0, 6.0])), few, world) >= 0.97


def test_readings_report_the_scene(images: np.ndarray, scenes: list[TextScene], world: TextWorld) -> None:
    for seen, scene in zip(read_text(images[:40], world), scenes, strict=False):
        found = (seen.word, seen.color, seen.background, seen.defect)
        assert found == (scene.word, scene.color, scene.background, None)
        assert np.abs([seen.x - scene.x, seen.y - scene.y, seen.height - scene.height]).max() < 0.25


def test_the_result_does_not_depend_on_the_batch(images: np.ndarray, world: TextWorld) -> None:
    together = read_text(images[:6], world)
    assert together == [read_text(image[None], world)[0] for image in images[:6]] == read_text(list(images[:6]), world)


@pytest.mark.parametrize("size", [12.0, 20.0])
@pytest.mark.parametrize("letter", LETTERS)
def test_every_letter_is_read_at_every_size_beside_every_neighbour(letter: str, size: float) -> None:
    """Each letter stands in the middle of a word of three, blurred, on some place between the pixels."""
    rng = np.random.default_rng([LETTERS.index(letter), int(size)])
    scenes = []
    for other in rng.permutation(list(LETTERS))[:3]:
        x, y = 2 + rng.random(2) * 8
        word = f"{other}{letter}{other}"
        scenes.append(TextScene("white", word, "blue", float(x), float(y), size, text_caption(word, "blue")))
    pictures = np.stack([render_text(scene, TEXT) for scene in scenes])
    assert accuracy(quantised(ndimage.gaussian_filter(pictures.astype(float), (0, 1, 1, 0))), scenes, TEXT) == 1


def test_words_of_other_lengths_are_read_too() -> None:
    for word in ("I", "AT", "LETTER"):
        height = min(20.0, 60 / num_columns(len(word)) * 7)
        world = TextWorld(heights=(10, 20), lengths=(3, 4))
        (seen,) = read_text(render_text(TextScene("black", word, "yellow", 2, 9, height, ""), world)[None], world)
        assert (seen.word, seen.color) == (word, "yellow")


def test_other_captions_are_rejected_with_what_was_found() -> None:
    scenes = [sample_text_scene(TEXT, 23, index, split="all") for index in range(30)]
    images = np.stack([render_text(scene, TEXT) for scene in scenes])
    rng = np.random.default_rng(1)
    captions = []
    for scene in scenes[:30]:
        place = rng.integers(len(scene.word))
        letter = rng.choice([one for one in LETTERS if one != scene.word[place]])
        captions.append(text_caption(scene.word[:place] + letter + scene.word[place + 1 :], scene.color))
    colors = [next(color for color in COLORS if color != scene.color) for scene in scenes[:15]]
    captions += [text_caption(scene.word, color) for scene, color in zip(scenes, colors, strict=False)]
    verdicts = verify_text(np.concatenate([images[:30], images[:15]]), captions, TEXT)
    assert not any(verdict.correct for verdict in verdicts)
    assert verdicts[0].reason.endswith(f"found {scenes[0].word} in {scenes[0].color}")


Damage = Callable[[TextScene, np.ndarray, TextWorld, np.random.Generator], np.ndarray]


def letter_box(scene: TextScene, number: int) -> tuple[slice, slice]:
    """Rows and columns of a letter."""
    left = scene.x + 6 * scene.cell * number
    rows = slice(int(scene.y), int(np.ceil(scene.y + scene.height)))
    return rows, slice(int(left), int(np.ceil(left + 5 * scene.cell)))


def letter_missing(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    image[letter_box(scene, int(rng.integers(len(scene.word))))] = BACKGROUNDS[scene.background]
    return image


def letter_upside_down(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    """One that looks otherwise then."""
    turned = [number for number, letter in enumerate(scene.word) if letter not in "BCDEHIKOSXZN"]
    if not turned:
        return image[::-1].copy()
    box = letter_box(scene, turned[0])
    image[box] = image[box][::-1].copy()
    return image


def letter_filled(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    image[letter_box(scene, int(rng.integers(len(scene.word))))] = COLORS[scene.color]
    return image


def one_of_another_colour(
    scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator
) -> np.ndarray:
    other = next(color for color in world.colors if color != scene.color)
    box = letter_box(scene, 1)
    image[box] = render_text(replace(scene, color=other), world)[box]
    return image


def half_faded(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    base = np.array(BACKGROUNDS[scene.background])
    return quantised(base + 0.5 * (image - base.astype(float)))


def mirrored(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    """Read backwards it may be a word, but another one."""
    return image[:, ::-1].copy() if scene.word != scene.word[::-1] else image[::-1].copy()


def written_twice(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    shift = 20 if scene.y < world.canvas / 2 - scene.height / 2 else -20
    again = render_text(replace(scene, y=np.clip(scene.y + shift, 0, world.canvas - scene.height)), world)
    return np.minimum(image, again) if scene.background == "white" else np.maximum(image, again)


def blot_beside(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    row = 1 if scene.y > world.canvas / 2 - scene.height / 2 else world.canvas - 7
    column = int(rng.integers(1, world.canvas - 7))
    image[row : row + 6, column : column + 6] = COLORS[scene.color]
    return image


def sprinkled(scene: TextScene, image: np.ndarray, world: TextWorld, rng: np.random.Generator) -> np.ndarray:
    places = rng.integers(0, world.canvas, (2, world.canvas**2 // 40))
    image[places[0], places[1]] = COLORS[scene.color]
    return image


@pytest.mark.parametrize(
    "damage",
    [
        letter_missing,
        letter_upside_down,
        letter_filled,
        one_of_another_colour,
        half_faded,
        mirrored,
        written_twice,
        blot_beside,
        sprinkled,
    ],
)
def test_damaged_pictures_are_rejected(damage: Damage) -> None:
    rng = np.random.default_rng(2)
    scenes = [sample_text_scene(TEXT, 22, index, split="all") for index in range(25)]
    pictures = np.stack([damage(scene, render_text(scene, TEXT), TEXT, rng) for scene in scenes])
    assert accuracy(pictures, scenes, TEXT) == 0


def test_letters_of_another_font_are_not_taken_for_the_right_ones() -> None:
    pictures, scenes = [], []
    for word in ("CAT", "RUN", "GAME", "QUIZ", "BOX"):
        image = Image.new("RGB", (64, 64), "white")
        font = ImageFont.load_default(18)
        ImageDraw.Draw(image).text((32, 32), word, fill=COLORS["red"], font=font, anchor="mm")
        pictures.append(np.asarray(image))
        scenes.append(TextScene("white", word, "red", 0, 0, 0, text_caption(word, "red")))
    assert accuracy(np.stack(pictures), scenes, TEXT) == 0


def test_pictures_without_a_word_are_rejected() -> None:
    size = (64, 64, 3)
    pictures = np.stack(
        [
            np.full(size, 255, np.uint8),
            np.full(size, 128, np.uint8),
            np.full(size, COLORS["red"], np.uint8),
            np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8),
            *(render(sample_scene(SHAPES, 0, index), SHAPES) for index in range(20)),
        ]
    )
    verdicts = verify_text(pictures, ["the word CAT in red"] * 24, TEXT)
    assert not any(verdict.correct for verdict in verdicts)
    assert all(verdict.reading.defect for verdict in verdicts)
    assert verdicts[0].reason == "there is no word" and "neither white nor black" in verdicts[1].reason
    assert (verdicts[0].reading.word, verdicts[0].reading.color) == ("", None)


def test_other_inputs_are_refused() -> None:
    pictures = np.full((2, 64, 64, 3), 255, np.uint8)
    with pytest.raises(ValueError, match=r"uint8 and \(B, 64, 64, 3\)"):
        read_text(pictures / 255, TEXT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convert or resize"):
        read_text(pictures[:, :32, :32], TEXT)
    with pytest.raises(ValueError, match="as many as images"):
        verify_text(pictures, ["the word CAT in red"], TEXT)
    with pytest.raises(ValueError, match="cannot be read"):
        verify_text(pictures[:1], ["a circle"], TEXT)
    assert read_text([], TEXT) == [] == verify_text([], [], TEXT)
