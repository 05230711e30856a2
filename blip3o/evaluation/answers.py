"""Scores from a judge's words: read strictly, asked for again where they can not be read, and never made up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip3o.evaluation.judges.base import Judge, Unanswered

_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)


class Malformed(ValueError):
    """An answer holds no scores that can be used; the message is the reason."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked about an edit.

    Attributes:
        name: under which the scores are recorded.
        prompt: the words; they ask for one JSON object whose `scores` is a list.
        shows: what the judge sees, in this order: `before`, `after`.
        num_scores: how many scores the answer must hold.
        low: least score.
        high: greatest score.
    """

    name: str
    prompt: str
    shows: tuple[str, ...]
    num_scores: int
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What came of a question.

    Attributes:
        scores: as many as were asked for; None where no answer could be used.
        answers: the words of every answer.
        version: of the judge, as the last answer told it; None where none came.
        failure: why there are no scores; None where there are.
        unanswered: whether that is because no answer came at all.
    """

    scores: list[float] | None
    answers: list[str]
    version: str | None
    failure: str | None = None
    unanswered: bool = False


def ask(judge: Judge, question: Question, images: Sequence[Image.Image], max_asks: int) -> Verdict:
    """Asks until an answer can be read, at most `max_asks` times; every further time, the judge is told why.

    Raises:
        JudgeStopped: if the judge can answer nothing.
    """
    answers: list[str] = []
    version, reason, prompt = None, "", question.prompt
    for _ in range(max_asks):
        try:
            answer = judge(prompt, images)
        except Unanswered as error:  # the judge has tried again by itself
            return Verdict(None, answers, version, f"{question.name}: {error}", unanswered=True)
        answers.append(answer.text)
        version = answer.version
        try:
            return Verdict(read_scores(answer.text, question), answers, version)
        except Malformed as error:
            reason = str(error)
            prompt = f"{question.prompt}\n\nAn earlier answer could not be used: {reason}. Give the JSON object alone."
    return Verdict(None, answers, version, f"{question.name}: {max_asks} answers could not be used; the last {reason}")


def read_scores(text: str, question: Question) -> list[float]:
    """The scores of an answer: the list `scores` of the one JSON object in it that has one.

    Words around the object, a code fence and a model's thoughts before `</think>` are passed over.

    Raises:
        Malformed: if there is no such object, there are several that differ, or the list is not as asked.
    """
    found = [one["scores"] for one in _objects(_THOUGHTS.sub("", text)) if "scores" in one]
    if not found:
        raise Malformed("has no JSON object with scores" if text.strip() else "is empty")
    scores = found[0]
    if any(other != scores for other in found):
        raise Malformed(f"has {len(found)} JSON objects with different scores")
    if not isinstance(scores, list) or len(scores) != question.num_scores:
        raise Malformed(f"has scores {json.dumps(scores)[:100]}, not a list of {question.num_scores} numbers")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise Malformed(f"has a score {json.dumps(score)[:100]}, which is no number")
        if not question.low <= score <= question.high:
            raise Malformed(f"has a score {score}, outside {question.low:g} to {question.high:g}")
    return [float(score) for score in scores]


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, those inside others left out."""
    decoder, found, start = json.JSONDecoder(), [], text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            found.append(value)
        start = text.find("{", end)
    return found
