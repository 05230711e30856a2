"""Scores are read from a judge's words only where they are what was asked for."""

from __future__ import annotations

import pytest

from blip3o.evaluation.answers import Malformed, ask, read_scores
from blip3o.evaluation.judges import JudgeStopped, Unanswered
from tests.evaluation.benchmarks import Scripted, picture, question, scores

GOOD = {
    "alone": '{"reasoning": "fine", "scores": [4, 3, 5]}',
    "fenced": 'Here it is:\n```json\n{"scores": [4, 3, 5]}\n```\nDone.',
    "after other braces": 'The set {a, b} and {"note": 1}. {"scores": [4, 3, 5]}',
    "after thoughts": '<think>first {"scores": [1, 1, 1]}, no</think>{"scores": [4, 3, 5]}',
    "said twice": '{"scores": [4, 3, 5]} so {"scores": [4, 3, 5]}',
    "floats": '{"scores": [4.0, 3, 5.0]}',
    "with braces in a text": '{"reasoning": "a } in {words}", "scores": [4, 3, 5]}',
}
BAD = {
    "": "is empty",
    "4, 3, 5": "has no JSON object with scores",
    "[4, 3, 5]": "has no JSON object with scores",
    '{"scores": [4, 3, 5': "has no JSON object with scores",
    '{"a": {"scores": [4, 3, 5]}}': "has no JSON object with scores",
    '{"scores": [4, 3]}': "not a list of 3 numbers",
    '{"scores": [4, 3, 5, 5]}': "not a list of 3 numbers",
    '{"scores": 4}': "not a list of 3 numbers",
    '{"scores": [4, "3", 5]}': 'has a score "3", which is no number',
    '{"scores": [4, true, 5]}': "has a score true, which is no number",
    '{"scores": [4, null, 5]}': "has a score null, which is no number",
    '{"scores": [4, NaN, 5]}': "which is no number",
    '{"scores": [4, 0, 5]}': "has a score 0, outside 1 to 5",
    '{"scores": [4, 6, 5]}': "has a score 6, outside 1 to 5",
    '{"scores": [4, 3, 5]} or {"scores": [1, 1, 1]}': "has 2 JSON objects with different scores",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_scores_are_found(text: str) -> None:
    assert read_scores(text, question()) == [4.0, 3.0, 5.0]


@pytest.mark.parametrize(("text", "told"), BAD.items())
def test_what_is_no_answer_is_refused(text: str, told: str) -> None:
    with pytest.raises(Malformed) as error:
        read_scores(text, question())
    assert told in str(error.value)


def test_a_malformed_answer_is_asked_for_again_and_the_judge_is_told_why() -> None:
    judge = Scripted("no idea", scores(9, 1, 1), scores(4, 3, 5))
    verdict = ask(judge, question(), [picture(0)], max_asks=3)
    assert verdict.scores == [4, 3, 5] and verdict.failure is None
    assert verdict.answers == ["no idea", scores(9, 1, 1), scores(4, 3, 5)]
    assert judge.asked[0] == "How good?"
    assert "has no JSON object with scores" in judge.asked[1] and judge.asked[1].startswith("How good?\n")
    assert "a score 9, outside 1 to 5" in judge.asked[2] and "no JSON object" not in judge.asked[2]


def test_after_the_last_ask_there_are_no_scores_but_a_reason() -> None:
    judge = Scripted("no idea")
    verdict = ask(judge, question(), [picture(0)], max_asks=2)
    assert verdict.scores is None and len(judge.asked) == 2 and not verdict.unanswered
    assert verdict.failure == "edit: 2 answers could not be used; the last has no JSON object with scores"


def test_a_request_that_failed_is_not_sent_again_and_a_stop_goes_through() -> None:
    judge = Scripted("no idea", Unanswered("no answer within 5 seconds"))
    verdict = ask(judge, question(), [picture(0)], max_asks=3)
    assert verdict.scores is None and verdict.unanswered and verdict.answers == ["no idea"]
    assert verdict.failure == "edit: no answer within 5 seconds" and len(judge.asked) == 2
    with pytest.raises(JudgeStopped, match="wrong key"):
        ask(Scripted(JudgeStopped("wrong key")), question(), [picture(0)], max_asks=3)
