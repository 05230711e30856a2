"""GenEval results: rows as its own scripts read them, and scores with their intervals."""

import json

import numpy as np
import pytest

from blip3o.shapes import (
    SHAPES,
    metadata,
    render,
    result_rows,
    sample_scene,
    summary,
    verify,
    wilson_interval,
)


def row(tag: str, correct: bool) -> dict:
    return {"tag": tag, "correct": correct}


def test_rows_hold_genevals_keys_and_survive_json() -> None:
    scenes = [sample_scene(SHAPES, 9, index) for index in range(12)]
    prompts = [scene.caption for scene in scenes]
    verdicts = verify(np.stack([render(scene, SHAPES) for scene in scenes]), prompts, SHAPES)
    names = [f"{index:05d}/samples/0000.png" for index in range(12)]
    rows = result_rows(verdicts, prompts, names, SHAPES)
    assert json.loads(json.dumps(rows)) == rows
    for line, scene, name in zip(rows, scenes, names, strict=True):
        assert list(line) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
        assert (line["filename"], line["tag"], line["prompt"]) == (name, scene.tag, scene.caption)
        assert line["correct"] is True and line["reason"] == ""
        assert json.loads(line["metadata"]) == metadata(scene.caption, SHAPES)
        details = json.loads(line["details"])
        assert details["background"] == scene.background
        assert len(details["detections"]) == len(scene.objects)
    assert summary(rows)["overall"]["mean"] == 1.0


def test_overall_is_the_plain_mean_of_the_tags() -> None:
    rows = [row("colors", True)] * 30 + [row("colors", False)] * 10 + [row("counting", False)] * 4
    scores = summary(rows)
    assert list(scores["tags"]) == ["counting", "colors"]
    assert scores["tags"]["colors"]["mean"] == 0.75 and scores["tags"]["counting"]["mean"] == 0
    assert scores["overall"]["mean"] == 0.375 and scores["num_images"] == 44
    low, high = scores["overall"]["interval"]
    assert 0 <= low < 0.375 < high <= 1
    assert scores["tags"]["colors"]["interval"] == wilson_interval(30, 40)
    json.dumps(scores)


def test_wilson_interval_against_published_values() -> None:
    assert wilson_interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 20) == pytest.approx([0.0, 0.1611], abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx([0.8830, 1.0], abs=1e-4)


def test_overall_interval_covers_the_truth() -> None:
    """Over many simulated evaluations the 95 % interval holds the true mean about 95 % of the time."""
    rng = np.random.default_rng(0)
    shares = [0.2, 0.5, 0.9]
    hits = 0
    for _ in range(300):
        outcomes = [(tag, rng.random(60) < p) for tag, p in zip("abc", shares, strict=True)]
        low, high = summary([row(tag, hit) for tag, hits_ in outcomes for hit in hits_])["overall"]["interval"]
        hits += low <= np.mean(shares) <= high
    assert 0.91 < hits / 300 < 0.99


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        summary([])
    with pytest.raises(ValueError, match="of one length"):
        result_rows([], ["a circle"], [], SHAPES)
    with pytest.raises(ValueError, match="num_correct"):
        wilson_interval(3, 2)
