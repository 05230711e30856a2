"""Captions: the grammar's size and wording, the split, parsing, GenEval metadata, evaluation lists."""

import hashlib
from collections import Counter

import pytest

from blip3o.shapes import (
    SHAPES,
    SHAPES_MINI,
    TAGS,
    WORLDS,
    ObjectSpec,
    World,
    captions,
    evaluation_captions,
    is_held_out,
    metadata,
    parse_caption,
)
from blip3o.shapes.world import COLORLESS_TAGS

SIZES = {
    "single_object": 5,
    "two_object": 5 * 4,
    "counting": 3 * 6 * 5,
    "colors": 6 * 5,
    "position": 30 * 4 * 6 * 4,
    "color_attr": 30 * 4 * 5,
}


@pytest.mark.parametrize("tag", TAGS)
def test_every_caption_is_listed_once(tag: str) -> None:
    table = captions(SHAPES, tag)
    assert len(table) == len(set(table)) == SIZES[tag]


def test_wording() -> None:
    assert "a circle" in captions(SHAPES, "single_object")
    assert "a circle and a star" in captions(SHAPES, "two_object")
    assert "three green triangles" in captions(SHAPES, "counting")
    assert "four orange crosses" in captions(SHAPES, "counting")
    assert "an orange star" in captions(SHAPES, "colors")
    assert "a red circle left of a blue square" in captions(SHAPES, "position")
    assert "a purple cross and an orange circle" in captions(SHAPES, "color_attr")
    every = [caption for tag in TAGS for caption in captions(SHAPES, tag)]
    assert not any("a orange" in caption or "crosss" in caption for caption in every)
    assert all(" crosses" in c for c in captions(SHAPES, "counting") if "cross" in c)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("tag", TAGS)
def test_split_follows_the_md5_rule_exactly(world: World, tag: str) -> None:
    train, held_out, every = (captions(world, tag, split) for split in ("train", "held_out", "all"))
    if tag in COLORLESS_TAGS:
        assert train == held_out == every
        assert not any(map(is_held_out, every))
        return
    assert set(train).isdisjoint(held_out) and set(train) | set(held_out) == set(every)
    assert held_out and train
    for caption in every:
        rule = int(hashlib.md5(caption.encode()).hexdigest(), 16) % 10 == 0
        assert is_held_out(caption) == rule == (caption in held_out)


def test_unknown_tags_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="tag"):
        captions(SHAPES, "poetry")
    with pytest.raises(ValueError, match="split"):
        captions(SHAPES, "colors", "test")


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_parsing_inverts_writing(world: World) -> None:
    for tag in world.tags:
        for caption in captions(world, tag):
            spec = parse_caption(caption, world)
            assert (spec.tag, spec.caption) == (tag, caption)
            words = caption.replace("crosses", "cross").split()
            assert [kind.shape for kind in spec.objects] == [
                shape for word in words for shape in world.shapes if word in (shape, shape + "s")
            ]
            assert [kind.color for kind in spec.objects if kind.color] == [w for w in words if w in world.colors]


def test_parsed_counts_and_relations() -> None:
    spec = parse_caption("three green triangles", SHAPES)
    assert spec.objects == (ObjectSpec("triangle", "green", 3),) and spec.num_objects == 3
    spec = parse_caption("an orange cross above a blue star", SHAPES)
    assert spec.relation == "above"
    assert spec.objects == (ObjectSpec("cross", "orange"), ObjectSpec("star", "blue"))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "circle",
        "a hexagon",
        "a pink circle",
        "a orange circle",
        "an red circle",
        "a big red circle",
        "two red circle",
        "two circles",
        "five red circles",
        "a circle and a circle",
        "a red circle and a square",
        "a circle left of a square",
        "a red circle and a red square",
        "a red circle left of a blue circle",
        "a red circle left of a blue square.",
        "a red circle, a blue square and a star",
    ],
)
def test_what_cannot_be_read_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_caption(caption, SHAPES)


def test_a_small_world_reads_only_its_own_captions() -> None:
    for caption in ("three red circles", "a yellow circle", "a star"):
        parse_caption(caption, SHAPES)
        with pytest.raises(ValueError, match="cannot be read"):
            parse_caption(caption, SHAPES_MINI)
    with pytest.raises(ValueError, match="task"):
        parse_caption("a circle", World(tags=("colors",)))


def test_metadata_is_genevals() -> None:
    assert metadata("a red circle left of a blue square", SHAPES) == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "prompt": "a red circle left of a blue square",
    }
    assert metadata("two green stars", SHAPES) == {
        "tag": "counting",
        "include": [{"class": "star", "count": 2, "color": "green"}],
        "exclude": [{"class": "star", "count": 3}],
        "prompt": "two green stars",
    }
    assert metadata("a circle and a star", SHAPES)["include"] == [
        {"class": "circle", "count": 1},
        {"class": "star", "count": 1},
    ]


@pytest.mark.parametrize("num_captions", [1, 6, 100, 553])
def test_evaluation_captions_are_balanced_pure_and_held_out(num_captions: int) -> None:
    drawn = evaluation_captions(SHAPES, num_captions, seed=3)
    assert len(drawn) == num_captions and drawn == evaluation_captions(SHAPES, num_captions, seed=3)
    tags = Counter(parse_caption(caption, SHAPES).tag for caption in drawn)
    counts = [tags[tag] for tag in TAGS]
    assert max(counts) - min(counts) <= 1
    for tag in TAGS:
        mine = [caption for caption in drawn if parse_caption(caption, SHAPES).tag == tag]
        table = captions(SHAPES, tag, "held_out")
        assert set(mine) <= set(table)
        uses = Counter(mine)
        assert max((uses[c] for c in table), default=0) - min(uses[c] for c in table) <= 1
    assert drawn == evaluation_captions(SHAPES, 600, seed=3)[:num_captions]


def test_evaluation_captions_depend_on_the_seed() -> None:
    assert evaluation_captions(SHAPES, 60, 0) != evaluation_captions(SHAPES, 60, 1)
    assert len(evaluation_captions(SHAPES_MINI, 60, 0)) == 60
    with pytest.raises(ValueError, match="num_captions"):
        evaluation_captions(SHAPES, 0, 0)
