"""RemoteReward against real servers: the same scores, and one clear message or a pause for whatever goes wrong."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from blip3o.rewards import RemoteReward, Reward, ShapesReward
from blip3o.rewards.server import RewardServer
from blip3o.shapes import SHAPES_MINI, metadata, render, sample_scene
from tests.rewards.toys import Brightness, Failing

SCENES = [sample_scene(SHAPES_MINI, 0, index) for index in range(7)]
IMAGES = np.stack([render(scene, SHAPES_MINI) for scene in SCENES])
PROMPTS = [scene.caption for scene in SCENES]
METADATA = [metadata(prompt, SHAPES_MINI) for prompt in PROMPTS]
INFO = {"protocol": 1, "reward": "brightness", "range": [0.0, 1.0], "max_body": 2**20}


@contextmanager
def serving(reward: Reward, **arguments: Any) -> Iterator[RewardServer]:
    """A server in a thread."""
    with RewardServer(reward, **arguments) as server:
        server.open()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(*answers: Any, info: Any = INFO) -> Iterator[str]:
    """A server that gives the same sequence of answers to `/score`, the last for ever: text, or a number as status."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(info)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(left.pop(0) if len(left) > 1 else left[0])

        def reply(self, answer: Any) -> None:
            if isinstance(answer, int):
                self.send_error(answer)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write((answer if isinstance(answer, str) else json.dumps(answer)).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def remote(url: str, **arguments: Any) -> RemoteReward:
    return RemoteReward(url, **{"backoff": 0.01, "max_wait": 0.3, "timeout": 5.0, "max_retries": 2, **arguments})


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_are_those_of_the_reward_itself_to_the_last_bit(batch_size: int) -> None:
    images = IMAGES.copy()
    images[2] = 0
    with serving(Brightness()) as server:
        scores = remote(server.url, batch_size=batch_size)(images, PROMPTS, METADATA)
    expected = Brightness()(images, PROMPTS, METADATA)
    assert np.isnan(expected[2]) and np.array_equal(scores, expected, equal_nan=True)


def test_prompts_and_metadata_reach_the_reward() -> None:
    seen: list[Any] = []

    class Keep(ShapesReward):
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> np.ndarray:
            seen.extend(zip(prompts, metadata, strict=True))
            return super().__call__(images, prompts, metadata)

    with serving(Keep("shapes-mini")) as server:
        reward = remote(server.url + "/", name="far", batch_size=4)
        assert reward.range == (-math.inf, math.inf)
        reward.prepare()
        assert (reward.name, reward.range) == ("far", (0.0, 1.0))
        assert reward(IMAGES, PROMPTS, METADATA).tolist() == [1.0] * 7
        assert reward(IMAGES[:0], [], []).tolist() == []
    assert seen == list(zip(PROMPTS, METADATA, strict=True))


def test_several_clients_are_served_at_once() -> None:
    with serving(Brightness()) as server:
        results: list[np.ndarray] = []
        ask = lambda: results.append(remote(server.url, batch_size=2)(IMAGES, PROMPTS, METADATA))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = Brightness()(IMAGES, PROMPTS, METADATA)
    assert len(results) == 4 and all(np.array_equal(one, expected) for one in results)


def fields(**changes: Any) -> dict[str, Any]:
    return {"protocol": 1, "reward": "brightness", "range": [0.0, 1.0], "scores": [0.5] * 7, **changes}


GARBAGE: dict[str, tuple[Any, str]] = {
    "too few": (fields(scores=[0.5] * 6), "holds 6 scores for 7 pictures"),
    "no list": (fields(scores="0.5"), "holds no list of scores for 7 pictures"),
    "NaN": (json.dumps(fields(scores=[math.nan] * 7)), "score 'nan', which is no finite number"),
    "infinite": (json.dumps(fields(scores=[math.inf] * 7)), "score 'inf', which is no finite number"),
    "text": (fields(scores=["0.5"] * 7), "score '0.5', which is no finite number"),
    "truth": (fields(scores=[True] * 7), "score 'True', which is no finite number"),
    "out of range": (fields(scores=[1.5] * 7), "score 1.5, outside 0 to 1"),
    "HTML": ("<html>Welcome</html>", "no JSON but begins b'<html>Welcome</html>'"),
    "no object": ([1, 2], "of protocol 'list', not 1"),
    "other protocol": (fields(protocol=2), "of protocol 2, not 1; use one version of blip3o on both sides"),
    "other reward": (fields(reward="darkness"), r"that of reward 'darkness' \(0.0, 1.0\), not 'brightness'"),
    "other range": (fields(range=[0, 2]), r"reward 'brightness' \(0.0, 2.0\)"),
    "status 500": (500, "status 500: Internal Server Error, without a message"),
}


@pytest.mark.parametrize(("answer", "told"), GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_asked_again_and_then_refused_with_what_is_wrong(answer: Any, told: str) -> None:
    with answering(answer) as url:
        with pytest.raises(ValueError, match=rf"url \({url}\) gave no answer that can be used in 3 tries: .*{told}"):
            remote(url)(IMAGES, PROMPTS, METADATA)
        with pytest.raises(ValueError, match="in 1 try: "):
            remote(url, max_retries=0)(IMAGES, PROMPTS, METADATA)
    with answering(answer, answer, fields()) as url:
        assert remote(url)(IMAGES, PROMPTS, METADATA).tolist() == [0.5] * 7


def test_rounding_may_pass_the_end_of_a_range_and_a_range_may_be_open() -> None:
    with answering(fields(scores=[1.0000001, None, *[0.0] * 5])) as url:
        scores = remote(url)(IMAGES, PROMPTS, METADATA)
        assert scores[0] == 1.0000001 and np.isnan(scores[1])
    with answering(fields(range=[None, 1], scores=[-1e9] * 7), info={**INFO, "range": [None, 1]}) as url:
        assert remote(url)(IMAGES, PROMPTS, METADATA).min() == -1e9


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (404, "refuses the request, status 404: Not Found, without a message; it may be no reward server"),
        ("<html>", "gave no answer that can be used in 1 try: the answer is no JSON"),
        ({**INFO, "protocol": 9}, "of protocol 9, not 1"),
        ({**INFO, "max_body": None}, "no number of bytes"),
        ({**INFO, "reward": None}, "names no reward with a range"),
        ({**INFO, "range": ["low", "high"]}, "range .* is none"),
    ],
)
def test_what_is_no_reward_server_is_found_out_at_the_start(info: Any, told: str) -> None:
    with answering(fields(), info=info) as url, pytest.raises(ValueError, match=told):
        remote(url, max_retries=0).prepare()


def free_url() -> str:
    """Where nothing listens."""
    with RewardServer(Brightness()) as server:
        return server.url


def test_a_wrong_url_ends_the_start_in_one_message() -> None:
    url = free_url()
    told = rf"url \({url}\) can not be reached in 3 tries: .*refused.*\. Mend it, or start the server"
    with pytest.raises(ConnectionError, match=told):
        remote(url).prepare()
    with pytest.raises(ConnectionError, match=r"url \(http://nowhere\.invalid\) can not be reached in 1 try"):
        remote("http://nowhere.invalid", max_retries=0).prepare()


def test_a_server_that_stays_away_ends_the_run_after_max_wait(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Brightness()) as server:
        reward = remote(server.url)
        reward.prepare()
    told = rf"url \({server.url}\) has been away for max_wait \(0\.3 s\): .*resume from the last checkpoint"
    with caplog.at_level(logging.WARNING), pytest.raises(ConnectionError, match=told):
        reward(IMAGES, PROMPTS, METADATA)
    assert [record.message.split(";")[1] for record in caplog.records] == [" paused for 0 s, 0 s left"]


def test_a_server_that_asks_for_patience_gets_it(caplog: pytest.LogCaptureFixture) -> None:
    with answering(503, 429, 502, 504, fields()) as url, caplog.at_level(logging.WARNING):
        assert remote(url, max_retries=0)(IMAGES, PROMPTS, METADATA).tolist() == [0.5] * 7
    first, last = (record.message for record in caplog.records)
    assert f"reward server {url} is away (status 503: Service Unavailable" in first and "is back after" in last


def test_a_slow_server_is_told_from_one_that_is_away() -> None:
    with serving(Brightness(delay=0.4)) as server:
        assert remote(server.url)(IMAGES, PROMPTS, METADATA).min() > 0
        with pytest.raises(ValueError, match=r"it is up, but scored nothing within timeout \(0\.05 s\); raise that"):
            remote(server.url, timeout=0.05, max_retries=0)(IMAGES, PROMPTS, METADATA)


def test_a_server_that_hangs_is_away() -> None:
    """It listens, but answers nothing at all."""
    with RewardServer(Brightness()) as server:
        server.open()
        reward = remote(server.url, timeout=0.05, max_wait=0.1)
        with pytest.raises(ConnectionError, match=r"can not be reached in 3 tries: no answer within 0\.05 s"):
            reward.prepare()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        reward.prepare()
        server.shutdown()
        thread.join()
        with pytest.raises(ConnectionError, match=r"has been away for max_wait \(0\.1 s\): no answer within 0\.05 s"):
            reward(IMAGES, PROMPTS, METADATA)


@pytest.mark.parametrize(
    ("prompt", "error", "told"),
    [
        ("refuse", ValueError, "status 422: reward 'failing': prompts must say something else"),
        ("break", ValueError, "in 3 tries: status 500: reward 'failing' failed with KeyError: 'a fault of the reward'"),
        ("short", ValueError, "failed with RuntimeError: reward 'failing' gave .* for 7 images"),
        ("infinite", ValueError, "failed with RuntimeError: reward 'failing' gave .*inf"),
    ],
)
def test_what_the_reward_says_reaches_the_client(
    prompt: str, error: type[Exception], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Failing()) as server, pytest.raises(error, match=told):
        remote(server.url)(IMAGES, [prompt] * 7, METADATA)
    assert ("Traceback" in capsys.readouterr().err) == (prompt != "refuse")


def test_a_batch_too_large_for_the_server_is_refused_before_it_is_sent() -> None:
    with serving(Brightness(), max_body=900) as server:
        with pytest.raises(ValueError, match=r"batch_size \(64\) makes a request of \d+ bytes, more than the 900"):
            remote(server.url)(IMAGES, PROMPTS, METADATA)
        assert len(remote(server.url, batch_size=1)(IMAGES, PROMPTS, METADATA)) == 7


def test_metadata_that_json_does_not_hold_is_refused() -> None:
    with serving(Brightness()) as server, pytest.raises(ValueError, match="metadata can not be sent as JSON"):
        remote(server.url)(IMAGES[:1], PROMPTS[:1], [{"array": np.zeros(2)}])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": "localhost:8500"}, r"url \(localhost:8500\) must begin http"),
        ({"url": "http://"}, "name a host"),
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"max_retries": -1}, r"max_retries \(-1\)"),
        ({"timeout": 0.0}, r"timeout \(0\.0\) must be a number of seconds above 0"),
        ({"backoff": math.inf}, r"backoff \(inf\)"),
        ({"max_wait": -1.0}, r"max_wait \(-1\.0\)"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments: dict[str, Any], told: str) -> None:
    build: Callable[..., RemoteReward] = RemoteReward
    with pytest.raises(ValueError, match=told):
        build(**{"url": "http://localhost:8500", **arguments})
