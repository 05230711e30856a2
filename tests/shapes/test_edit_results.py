"""Rows, scores with their intervals, and panels of edits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from blip3o.shapes import (
    SHAPES,
    edit_panels,
    edit_record,
    edit_rows,
    edit_summary,
    read_edit,
    render,
    sample_edit,
    verify_edits,
    wilson_interval,
)


def row(tag: str, correct: bool, consistent: bool, mae: float) -> dict[str, object]:
    return {"tag": tag, "correct": correct, "consistent": consistent, "mae": mae}


def test_scores_are_the_plain_means_of_the_kinds() -> None:
    rows = [row("add", True, True, 0.0), row("remove", True, False, 0.2), row("remove", False, True, 0.4)]
    scores = edit_summary(rows)
    assert scores["num_images"] == 3 and list(scores["kinds"]) == ["remove", "add"]
    assert [scores[name]["mean"] for name in ("success", "consistency", "both")] == [0.75, 0.75, 0.5]
    assert scores["mae"]["mean"] == pytest.approx(0.15)
    removed = scores["kinds"]["remove"]
    assert (removed["num_images"], removed["success"]["mean"], removed["both"]["mean"]) == (2, 0.5, 0.0)
    assert removed["success"]["interval"] == wilson_interval(1, 2)


def test_the_error_has_students_interval() -> None:
    errors = [0.1, 0.2, 0.3, 0.4, 0.5]
    score = edit_summary([row("add", True, True, error) for error in errors])
    half = 2.7764451051977987 * np.std(errors, ddof=1) / math.sqrt(5)
    assert score["kinds"]["add"]["mae"]["interval"] == pytest.approx([0.3 - half, 0.3 + half])
    normal = 1.959963984540054 * np.std(errors, ddof=1) / math.sqrt(5)
    assert score["mae"]["interval"] == pytest.approx([0.3 - normal, 0.3 + normal])
    single = edit_summary([row("add", True, True, 0.1), *(row("remove", True, True, error) for error in errors)])
    assert single["kinds"]["add"]["mae"]["interval"] == single["mae"]["interval"] == [0, 1]
    with pytest.raises(ValueError, match="at least one result"):
        edit_summary([])


def test_rows_hold_all_that_is_needed_to_judge_anew() -> None:
    edits = [sample_edit(SHAPES, 0, index) for index in range(6)]
    pictures = [render(edit.source if index % 2 else edit.target, SHAPES) for index, edit in enumerate(edits)]
    rows = edit_rows(verify_edits(pictures, edits, SHAPES), edits, [f"{index}.png" for index in range(6)])
    assert json.loads(json.dumps(rows)) == rows
    assert [one["correct"] for one in rows] == [True, False] * 3
    assert [one["filename"] for one in rows] == [f"{index}.png" for index in range(6)]
    assert [one["prompt"] for one in rows] == [edit.instruction for edit in edits]
    again = [read_edit(json.loads(one["metadata"])) for one in rows]
    assert again == edits and json.loads(rows[0]["metadata"]) == json.loads(json.dumps(edit_record(edits[0])))
    with pytest.raises(ValueError, match=r"verdicts, edits and filenames \(0, 6, 0\)"):
        edit_rows([], edits, [])


def test_panels_are_labelled_and_show_references_result_difference_and_expectation() -> None:
    edits = [sample_edit(SHAPES, 0, 0, kind="recolor"), sample_edit(SHAPES, 0, 0, kind="combine")]
    pictures = [render(edits[0].target, SHAPES), render(edits[1].source, SHAPES)]
    verdicts = verify_edits(pictures, edits, SHAPES)
    panels, labels, columns = edit_panels(pictures, edits, verdicts, SHAPES)
    assert panels.shape == (10, 64, 64, 3) and columns == 5
    assert labels[:5] == [
        "no other image",
        f"source: {edits[0].instruction}",
        "result: success; consistent",
        "difference, 0.0000 outside the blue",
        f"expected: {edits[0].target.caption}",
    ]
    assert labels[5] == "image 1" and "failed: expected" in labels[7]
    assert np.array_equal(panels[1], render(edits[0].source, SHAPES))
    assert np.array_equal(panels[5], render(edits[1].references[0], SHAPES))
    assert np.array_equal(panels[9], render(edits[1].target, SHAPES))
    changed = (panels[2] != panels[1]).any(axis=-1)
    assert (panels[3][changed, 0] > 0).all() and not panels[3][~changed][:, :2].any()
    assert not panels[8].any(), "it is the source, and nothing was added"
    assert edit_panels(pictures[:1], edits[:1], verdicts[:1], SHAPES)[2] == 4
