"""The judge stage: its lines, that a stopped run goes on, that failures are told, and that nothing stale is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.ablation.files import locked
from blip3o.evaluation.gedit import GEdit
from blip3o.evaluation.imgedit import ImgEdit
from blip3o.evaluation.judges import Answer, JudgeStopped, OpenAIJudge, Unanswered
from blip3o.evaluation.judging import judge_edits, print_judged
from tests.evaluation.benchmarks import Scripted, edited, gedit_folder, imgedit_folder, picture, rows_of, scores
from tests.evaluation.endpoint import KEY, Request, serving


@pytest.fixture
def imgedit(tmp_path: Path) -> ImgEdit:
    return ImgEdit(imgedit_folder(tmp_path / "bench"))


@pytest.fixture
def out(imgedit: ImgEdit, tmp_path: Path) -> Path:
    return edited(imgedit, tmp_path / "out")


def test_the_judge_sees_the_right_pictures_and_every_line_is_whole(imgedit: ImgEdit, out: Path) -> None:
    judge = Scripted(scores(4, 5, 1))
    summary, folder = judge_edits(imgedit, out, judge)
    assert [np.asarray(after)[0, 0, 0] for _, after in judge.seen] == list(range(9))
    for item, (before, _) in zip(imgedit.items, judge.seen, strict=True):
        assert np.array_equal(np.asarray(before), np.asarray(item.picture()))
    rows = rows_of(folder / "results.jsonl")
    assert [row["image"] for row in rows] == [item.output for item in imgedit.items]
    assert rows[2]["given"] == {"edit": [4, 5, 1]} and rows[2]["scores"] == {"item": pytest.approx(3)}
    assert rows[2]["answers"] == {"edit": [scores(4, 5, 1)]} and rows[2]["failure"] is None
    assert (rows[2]["judge"], rows[2]["judge_version"]) == ("scripted", "scripted 1.0")
    assert summary["overall"] == pytest.approx(3) and summary == json.loads((folder / "summary.json").read_text())


def test_the_summary_records_what_made_the_pictures(imgedit: ImgEdit, out: Path) -> None:
    summary, _ = judge_edits(imgedit, out, Scripted(scores(4, 5, 1), name="a"))
    assert (summary["model"], summary["seed"], summary["settings"]) == (None, None, None), "made by other means"
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "token_guidance_scale": 1.5}
    record = {"benchmark": "imgedit", "model": "m", "seed": 7, "prompt_rewriting": False, "settings": settings}
    (out / "generation.json").write_text(json.dumps(record))
    summary, _ = judge_edits(imgedit, out, Scripted(scores(4, 5, 1), name="b"))
    assert {name: summary[name] for name in record} == record
    assert (summary["judge"], summary["judge_versions"]) == ("b", ["b 1.0"])
    assert summary["judge_prompts"].startswith("blip3o's own, sha256 ")
    assert (summary["num_items"], summary["num_judged"], summary["num_failures"], summary["failures"]) == (9, 9, 0, [])


def test_gedit_asks_twice_and_a_failure_of_one_question_is_one_of_the_item(tmp_path: Path) -> None:
    benchmark = GEdit(gedit_folder(tmp_path / "bench"))
    out = edited(benchmark, tmp_path / "out")
    judge = Scripted(*[scores(9, 4), scores(10, 9)] * 2, scores(8, 8), "nothing", "nothing", scores(1, 1))
    summary, folder = judge_edits(benchmark, out, judge, max_asks=2, num_items=4)
    assert [len(images) for images in judge.seen[:2]] == [2, 1]
    assert judge.seen[1][0].size == (512, 512) and np.asarray(judge.seen[3][0])[0, 0, 0] == 1
    rows = rows_of(folder / "results.jsonl")
    assert rows[0]["scores"] == {"SC": 4, "PQ": 9, "O": 6} and rows[0]["language"] == "en"
    assert rows[2]["scores"] is None and rows[2]["given"] == {"SC": [8, 8]}
    assert rows[2]["failure"] == "PQ: 2 answers could not be used; the last has no JSON object with scores"
    assert rows[2]["answers"] == {"SC": [scores(8, 8)], "PQ": ["nothing", "nothing"]}
    assert summary["failures"] == [{"image": rows[2]["image"], "reason": rows[2]["failure"]}]
    assert (summary["num_items"], summary["num_judged"], summary["num_failures"]) == (4, 3, 1)
    full = summary["languages"]["en"]["full"]
    assert full["groups"][benchmark.items[0].group]["O"] == 6 and full["O"] is None
    assert full["groups"][benchmark.items[2].group] == {
        **{"SC": None, "PQ": None, "O": None, "num_items": 1, "num_judged": 0, "num_failures": 1}
    }


def test_a_rerun_judges_what_is_missing_what_failed_and_what_changed(imgedit: ImgEdit, out: Path) -> None:
    first = Scripted(*[scores(1, 1, 1)] * 3, "nothing", scores(2, 2, 2))
    summary, folder = judge_edits(imgedit, out, first, num_items=5, max_asks=1)
    assert summary["num_failures"] == 1
    Image.new("RGB", (32, 32), (200, 0, 0)).save(out / imgedit.items[1].output)
    second = Scripted(scores(5, 5, 5))
    summary, _ = judge_edits(imgedit, out, second)
    assert [int(np.asarray(after)[0, 0, 0]) for _, after in second.seen] == [200, 3, 5, 6, 7, 8]
    assert len(rows_of(folder / "results.jsonl")) == 11, "nothing is ever taken out of the file"
    assert summary["num_failures"] == 0 and summary["mean_of_items"] == pytest.approx((1 + 5 + 1 + 5 + 2 + 4 * 5) / 9)
    third = Scripted(scores(3, 3, 3))
    again, _ = judge_edits(imgedit, out, third)
    assert third.asked == [] and again == summary


def test_a_stop_keeps_what_was_judged_and_the_rest_is_judged_later(imgedit: ImgEdit, out: Path) -> None:
    judge = Scripted(*[scores(4, 4, 4)] * 3, JudgeStopped("the key is wrong."))
    with pytest.raises(JudgeStopped, match=r"the key is wrong. 3 items are judged and kept in .*results.jsonl"):
        judge_edits(imgedit, out, judge)
    assert len(judge.asked) == 4
    (folder,) = (out / "judges").iterdir()
    assert len(rows_of(folder / "results.jsonl")) == 3 and not (folder / "summary.json").exists()
    later = Scripted(scores(4, 4, 4))
    summary, _ = judge_edits(imgedit, out, later)
    assert len(later.asked) == 6 and summary["overall"] == 4


def test_a_run_that_was_killed_in_the_middle_of_a_line_goes_on(imgedit: ImgEdit, out: Path) -> None:
    _, folder = judge_edits(imgedit, out, Scripted(scores(4, 4, 4)), num_items=3)
    path = folder / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    later = Scripted(scores(4, 4, 4))
    judge_edits(imgedit, out, later, num_items=3)
    assert len(later.asked) == 1
    assert [row["key"] for row in rows_of(path)] == ["100", "101", "102"]
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"results.jsonl line 1 lacks one of image"):
        judge_edits(imgedit, out, later)
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ValueError, match=r"results.jsonl line 1 is no JSON"):
        judge_edits(imgedit, out, later)


def test_judges_and_their_settings_never_mix(imgedit: ImgEdit, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, here = judge_edits(imgedit, out, Scripted(scores(4, 4, 4), name="a/b"))
    two, there = judge_edits(imgedit, out, Scripted(scores(2, 2, 2), name="a:b"))
    assert here != there and (one["overall"], two["overall"]) == (4, 2)
    warmer = Scripted(scores(2, 2, 2), name="a/b")
    warmer.settings = {"temperature": 1.0}
    with pytest.raises(ValueError, match=r"holds scores that differ in settings from .*; move the folder away"):
        judge_edits(imgedit, out, warmer)
    monkeypatch.setattr("blip3o.evaluation.imgedit.imgedit_prompt", lambda kind, instruction: "Other words")
    with pytest.raises(ValueError, match="holds scores that differ in prompts"):
        judge_edits(imgedit, out, Scripted(scores(2, 2, 2), name="a/b"))


def test_items_in_a_row_without_an_answer_end_the_run(imgedit: ImgEdit, out: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("blip3o.evaluation.judging.MAX_UNANSWERED", 3)
    good, bad = scores(4, 4, 4), Unanswered("answered 500")
    judge = Scripted(bad, bad, good, bad, bad, bad, good)
    with pytest.raises(JudgeStopped, match="left 3 items in a row unanswered, the last: edit: answered 500"):
        judge_edits(imgedit, out, judge)
    assert len(judge.asked) == 6
    silly = Scripted("nothing", name="silly")
    summary, _ = judge_edits(imgedit, out, silly, max_asks=1)
    assert summary["num_failures"] == 9, "answers that can not be read are failures of their items alone"


def test_as_many_requests_run_at_a_time_as_the_judge_takes(imgedit: ImgEdit, out: Path) -> None:
    class Together(Scripted):
        """Answers only when three requests are there at once."""

        barrier = threading.Barrier(3)

        def __call__(self, prompt: str, images: Any) -> Answer:
            self.barrier.wait(timeout=20)
            return Answer(scores(4, 4, 4), "1")

    summary, folder = judge_edits(imgedit, out, Together("", max_concurrency=3))
    assert summary["num_judged"] == 9 and len(rows_of(folder / "results.jsonl")) == 9


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.unlink(), "lacks 1 of 9 edited pictures, such as images/103.png; generate them first"),
        (lambda path: path.write_bytes(b"none"), "103.png is no picture of a known kind"),
    ],
)
def test_missing_and_damaged_pictures_are_named(
    imgedit: ImgEdit, out: Path, spoil: Callable[[Path], object], told: str
) -> None:
    spoil(out / "images/103.png")
    with pytest.raises(ValueError) as error:
        judge_edits(imgedit, out, Scripted(scores(4, 4, 4)))
    assert told in str(error.value)


def test_wrong_arguments(imgedit: ImgEdit, out: Path) -> None:
    with pytest.raises(ValueError, match=r"max_asks \(0\) must be at least 1"):
        judge_edits(imgedit, out, Scripted(""), max_asks=0)
    with pytest.raises(ValueError, match=r"num_items \(0\) must be at least 1"):
        judge_edits(imgedit, out, Scripted(""), num_items=0)
    assert not (out / "judges").exists()


def test_two_runs_of_a_judge_do_not_write_into_one_file(imgedit: ImgEdit, out: Path) -> None:
    judge = Scripted(scores(4, 4, 4))
    _, folder = judge_edits(imgedit, out, judge, num_items=1)
    with (
        locked(folder / ".lock", wait=False),
        pytest.raises(ValueError, match="in use by another run of this judge"),
    ):
        judge_edits(imgedit, out, judge)
    assert len(rows_of(folder / "results.jsonl")) == 1


def test_the_tables_name_judge_scores_and_failures(
    imgedit: ImgEdit, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    summary, folder = judge_edits(imgedit, out, Scripted("nothing [b]", scores(4, 4, 4)), max_asks=1)
    print_judged(imgedit, summary, folder)
    told = capsys.readouterr().out
    assert "imgedit, 9 of 737 items, model None" in told and "judge: scripted (scripted 1.0)" in told
    assert "overall (mean of the types)" in told and "8/9" in told and "4.000" in told
    assert "1 items have no score" in told and "images/100.png: edit: 1 answers could not be used" in told
    assert f"written to {folder}" in told
    gedit = GEdit(gedit_folder(tmp_path / "gedit"))
    summary, folder = judge_edits(gedit, edited(gedit, tmp_path / "out2"), Scripted(scores(4, 9)))
    print_judged(gedit, summary, folder)
    told = capsys.readouterr().out
    assert "gedit en, 11 of 606 items" in told and "tone_transfer" in told and "O (intersection)" in told


def test_through_a_real_endpoint_a_wrong_key_in_the_middle_stops_and_a_rerun_goes_on(
    imgedit: ImgEdit, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are read off the pictures that the server was sent: item i has i red in 255."""
    pytest.importorskip("openai")
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def reply(request: Request) -> str:
        red = int(np.asarray(request.images[1])[0, 0, 0])
        if len(endpoint.requests) == 4:
            endpoint.key = "revoked"
        assert request.images[0].size == picture(0).size
        return scores(1 + red // 2, 5, 5) if len(endpoint.requests) != 2 else "I can not say."

    with serving(reply) as endpoint:
        judge = OpenAIJudge(model="m", base_url=endpoint.url, api_key_env="JUDGE_KEY", max_concurrency=1)
        with pytest.raises(JudgeStopped, match=r"refused the key in JUDGE_KEY \(401\).* 3 items are judged and kept"):
            judge_edits(imgedit, out, judge)
        assert len(endpoint.requests) == 4  # one was asked for again
        endpoint.key = KEY
        summary, folder = judge_edits(imgedit, out, judge)
    rows = rows_of(folder / "results.jsonl")
    assert [row["given"]["edit"][0] for row in rows] == [1 + index // 2 for index in range(9)]
    assert rows[1]["answers"]["edit"][0] == "I can not say."
    assert summary["mean_of_items"] == pytest.approx(np.mean([1 + index // 2 for index in range(9)]))
    assert summary["judge_versions"] == ["m-2024-11-20"]
    assert KEY not in (folder / "results.jsonl").read_text() + (folder / "judge.json").read_text()
