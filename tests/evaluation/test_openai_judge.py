"""OpenAIJudge against a server that speaks the protocol: what is sent, and what becomes of every kind of failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blip3o.evaluation.judges import JudgeStopped, OpenAIJudge, Unanswered
from tests.evaluation.benchmarks import picture, scores
from tests.evaluation.endpoint import KEY, Endpoint, Fault, Reply, Request, serving

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def judge_at(endpoint: Endpoint, **arguments: Any) -> OpenAIJudge:
    return OpenAIJudge(model="gpt-4o", base_url=endpoint.url, api_key_env="JUDGE_KEY", **arguments)


def in_turn(*replies: str | Fault) -> Reply:
    """The replies in their order, the last one for ever."""
    left = list(replies)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def test_words_and_pictures_arrive_whole_and_in_their_order() -> None:
    def reply(request: Request) -> str:
        return scores(*(image.getpixel((0, 0))[1] for image in request.images))  # type: ignore[index]

    with serving(reply) as endpoint:
        pictures = [picture(3), picture(5, (33, 70))]
        answer = judge_at(endpoint, max_tokens=99)("Wie gut? 多好?", pictures)
        (request,) = endpoint.requests
    assert request.prompt == "Wie gut? 多好?"
    for sent, arrived in zip(pictures, request.images, strict=True):
        assert np.array_equal(np.asarray(sent), np.asarray(arrived))
    assert (request.body["model"], request.body["temperature"], request.body["max_tokens"]) == ("gpt-4o", 0.0, 99)
    assert answer.text == scores(200, 200)
    assert answer.version == "gpt-4o-2024-11-20", "the version is the one that the endpoint names"


def test_what_is_left_to_the_endpoint_is_not_sent() -> None:
    with serving(in_turn("yes")) as endpoint:
        judge_at(endpoint, temperature=None)("?", [])
        assert not {"temperature", "max_tokens"} & endpoint.requests[0].body.keys()


def test_failures_of_the_server_are_tried_again() -> None:
    with serving(in_turn(Fault(500), Fault(503), Fault(429), "yes")) as endpoint:
        assert judge_at(endpoint, retries=3)("?", [picture(0)]).text == "yes"
        assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    ("fault", "requests", "kind", "told"),
    [
        (Fault(500, "melted"), 3, Unanswered, "answered 500, tried up to 3 times: .*melted"),
        (Fault(400, "picture too large"), 1, Unanswered, "answered 400.*picture too large"),
        (Fault(429, "quota is used up"), 3, JudgeStopped, r"takes no more requests \(429\).*quota is used up"),
        (Fault(403, "country"), 1, JudgeStopped, r"forbids this key its use \(403\).*country.*check JUDGE_KEY"),
        (Fault(404, "no model gpt-4o"), 1, JudgeStopped, r"knows no such model or path \(404\).*no model gpt-4o"),
        (Fault(200, body="<html>hello</html>"), 1, Unanswered, "the endpoint's reply can not be read"),
        (Fault(200, body='{"ok": true}'), 1, Unanswered, "is no chat completion; check that base_url ends in /v1"),
        (Fault(200, body='{"choices": []}'), 1, Unanswered, "is no chat completion"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_what_each_failure_means(fault: Fault, requests: int, kind: type[Exception], told: str) -> None:
    with serving(in_turn(fault)) as endpoint:
        with pytest.raises(kind, match=told):
            judge_at(endpoint, retries=2)("?", [picture(0)])
        assert len(endpoint.requests) == requests


def test_html_with_its_own_content_type_is_no_answer() -> None:
    page = Fault(200, body="<html>sign in</html>", headers={"Content-Type": "text/html"})
    with serving(in_turn(page)) as endpoint, pytest.raises(Unanswered, match="is no chat completion"):
        judge_at(endpoint, retries=0)("?", [])


def test_a_refusal_without_words_is_an_empty_answer() -> None:
    body = '{"model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}]}'
    with serving(in_turn(Fault(200, body=body))) as endpoint:
        assert judge_at(endpoint)("?", []).text == ""


def test_a_wrong_key_stops_and_says_which_variable() -> None:
    with serving(in_turn("yes")) as endpoint:
        endpoint.key = "another"
        with pytest.raises(JudgeStopped) as error:
            judge_at(endpoint)("?", [])
        assert "refused the key in JUDGE_KEY (401)" in str(error.value) and "Incorrect API key" in str(error.value)
        assert KEY not in str(error.value) and endpoint.requests == []


def test_a_request_that_takes_too_long_is_given_up() -> None:
    def reply(request: Request) -> str:
        time.sleep(1.0)
        return "late"

    with serving(reply) as endpoint:
        start = time.perf_counter()
        with pytest.raises(Unanswered, match=r"no answer within 0.2 seconds, tried up to 1 times"):
            judge_at(endpoint, timeout=0.2, retries=0)("?", [picture(0)])
        assert time.perf_counter() - start < 1.0


def test_a_server_that_is_not_there_stops() -> None:
    with serving(in_turn("yes")) as endpoint:
        pass
    with pytest.raises(JudgeStopped, match=r"can not be reached, tried up to 1 times.*check base_url and the server"):
        judge_at(endpoint, retries=0)("?", [])


def test_a_missing_key_or_package_is_told_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(in_turn("yes")) as endpoint:
        monkeypatch.delenv("JUDGE_KEY")
        for call in (lambda judge: judge.check(), lambda judge: judge("?", [])):
            with pytest.raises(ValueError, match="environment variable JUDGE_KEY"):
                call(judge_at(endpoint))
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r"pip install 'blip3o\[judge\]'"):
            judge_at(endpoint).check()
        assert endpoint.requests == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url holds a user or a password"),
        ({"model": " "}, "model"),
        ({"timeout": 0}, r"timeout \(0\)"),
        ({"timeout": float("nan")}, r"timeout \(nan\)"),
        ({"retries": -1}, r"retries \(-1\) must be at least 0"),
        ({"max_concurrency": 0}, r"max_concurrency \(0\) must be at least 1"),
        ({"max_tokens": 0}, r"max_tokens \(0\)"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], told: str) -> None:
    make: Callable[..., OpenAIJudge] = OpenAIJudge
    with pytest.raises(ValueError, match=told) as error:
        make(**({"model": "gpt-4o"} | arguments))
    assert "secret" not in str(error.value)


def test_the_id_names_model_and_endpoint() -> None:
    assert OpenAIJudge(model="gpt-4.1").id == "gpt-4.1 at https://api.openai.com/v1"
