"""A reward that is scored elsewhere: by a server over HTTP, for which a run waits when it is away."""

from __future__ import annotations

import http.client
import json
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores
from blip3o.rewards.protocol import BadMessage, Served, decode_info, decode_scores, encode_batch

LONGEST_PAUSE = 30.0
"""Seconds between two tries, at most."""
MAX_ANSWER = 64 * 2**20
"""Bytes that are read of an answer."""
_AWAY = (429, 502, 503, 504)  # statuses by which a server or what stands before it asks to come back later
_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class _Away(Exception):
    """The server can not be reached for now."""


class RemoteReward(Reward):
    """What a server scores, such as `blip3o reward-server`; the protocol is that of `blip3o.rewards.protocol`.

    A server that can not be reached pauses the run, which says so and goes on when it is back. A wrong answer (no
    JSON, too few scores, numbers outside the range, status 500) or one that comes too late is asked for again. Nothing
    of a step is kept before its scores are there, so a run that gave up goes on from its last checkpoint as if nothing
    had been. In several processes each asks for its own pictures; the others wait where gradients are summed, so keep
    `max_wait` below the time after which they give up.

    Args:
        url: of the server, such as `http://127.0.0.1:8500`.
        name: under which it is logged.
        batch_size: pictures in a request.
        timeout: seconds for an answer.
        max_retries: how often a wrong or late answer, or at the start any, is asked for again.
        backoff: seconds before the second try; they double from try to try, up to `LONGEST_PAUSE`.
        max_wait: seconds of a pause after which the run ends.

    Raises:
        ValueError: if a number is out of range or the url is none of HTTP.
    """

    def __init__(
        self,
        url: str,
        name: str = "remote",
        batch_size: int = 64,
        timeout: float = 120.0,
        max_retries: int = 3,
        backoff: float = 1.0,
        max_wait: float = 3600.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url ({url}) must begin http:// or https:// and name a host.")
        for argument, value, least in (("batch_size", batch_size, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"{argument} ({value}) must be at least {least}.")
        for argument, seconds in (("timeout", timeout), ("backoff", backoff)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{argument} ({seconds}) must be a number of seconds above 0.")
        if not max_wait >= 0:
            raise ValueError(f"max_wait ({max_wait}) must be at least 0 seconds.")
        self.url = url.rstrip("/")
        self.name = name
        self.range = (-math.inf, math.inf)
        self.batch_size = batch_size
        self.timeout = timeout
        self.max_retries = max_retries
        self.backoff = backoff
        self.max_wait = max_wait
        self._served: tuple[Served, int] | None = None

    def prepare(self) -> None:
        """Asks the server what it is.

        Raises:
            ConnectionError: if it can not be reached in `max_retries` further tries: most likely the url is wrong.
            ValueError: if it is no reward server of this protocol.
        """
        self._served = self._ask(lambda: decode_info(self._send("info")), at_start=True)
        self.range = self._served[0].range

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) as the server gives them, whatever the batches; NaN where it could not judge.

        Raises:
            ConnectionError: if the server is away for longer than `max_wait`.
            ValueError: if it refuses the batch, or keeps giving wrong answers.
        """
        if self._served is None:
            self.prepare()
        slices = [slice(first, first + self.batch_size) for first in range(0, len(images), self.batch_size)]
        scores = [self._score(images[some], prompts[some], metadata[some]) for some in slices]
        return np.concatenate([np.zeros(0), *scores])

    def _score(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores of one request."""
        assert self._served is not None, "prepare has asked"
        served, limit = self._served
        body = encode_batch(images, prompts, metadata)
        if len(body) > limit:
            raise ValueError(
                f"batch_size ({self.batch_size}) makes a request of {len(body)} bytes, more than the {limit} that "
                f"{self.url} takes; lower it, or raise the server's --max_body."
            )
        return self._ask(lambda: decode_scores(self._send("score", body), served, len(images)))

    def _ask(self, question: Callable[[], Answer], *, at_start: bool = False) -> Answer:
        """The answer to a question, asked again for as long as there is hope."""
        pause = _Pause(self.url, self.backoff, self.max_wait)
        failures = 0
        while True:
            try:
                answer = question()
            except (BadMessage, _Away) as error:
                if isinstance(error, _Away) and not at_start:
                    pause.wait(error)
                    continue
                failures += 1
                if failures > self.max_retries:
                    raise self._hopeless(error, failures) from error
                time.sleep(min(self.backoff * 2 ** (failures - 1), LONGEST_PAUSE))
            else:
                pause.end()
                return answer

    def _hopeless(self, error: Exception, failures: int) -> Exception:
        tries = "1 try" if failures == 1 else f"{failures} tries"
        if isinstance(error, _Away):
            return ConnectionError(
                f"url ({self.url}) can not be reached in {tries}: {error}. Mend it, or start the server "
                "(blip3o reward-server) first."
            )
        return ValueError(f"url ({self.url}) gave no answer that can be used in {tries}: {error}")

    def _send(self, path: str, body: bytes | None = None, timeout: float | None = None) -> bytes:
        """What the server answers, of status 200."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout or self.timeout) as response:
                return bytes(response.read(MAX_ANSWER))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error
        except TimeoutError as error:  # it took the request, but has not answered
            if path == "info" or not self._is_up():
                raise _Away(f"no answer within {timeout or self.timeout:g} s") from error
            raise BadMessage(
                f"it is up, but scored nothing within timeout ({self.timeout:g} s); raise that, or lower batch_size "
                f"({self.batch_size})."
            ) from error
        except urllib.error.URLError as error:
            raise _Away(str(error.reason)) from error
        except (OSError, http.client.IncompleteRead) as error:
            raise _Away(str(error) or type(error).__name__) from error
        except http.client.HTTPException as error:
            raise BadMessage(f"it does not speak HTTP ({type(error).__name__}).") from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than 200 means."""
        try:
            body = error.read(MAX_ANSWER)
            told = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            told = f"{error.reason}, without a message; it may be no reward server"
        if error.code in _AWAY:
            return _Away(f"status {error.code}: {told}")
        if error.code >= 500:
            return BadMessage(f"status {error.code}: {told}")
        return ValueError(f"url ({self.url}) refuses the request, status {error.code}: {told}")

    def _is_up(self) -> bool:
        try:
            self._send("info", timeout=min(self.timeout, 5.0))
        except (_Away, ValueError):
            return False
        return True


class _Pause:
    """The time for which a server is away: waits longer from try to try, and says so at the start and ever more seldom.

    Args:
        url: of the server.
        backoff: seconds of the first wait.
        max_wait: seconds after which it gives up.
    """

    def __init__(self, url: str, backoff: float, max_wait: float) -> None:
        self._url = url
        self._next = backoff
        self._max_wait = max_wait
        self._start: float | None = None
        self._tell_at = 0.0

    def wait(self, cause: Exception) -> None:
        """Waits for the next try.

        Raises:
            ConnectionError: after `max_wait` seconds.
        """
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        waited = now - self._start
        if waited >= self._max_wait:
            raise ConnectionError(
                f"url ({self._url}) has been away for max_wait ({self._max_wait:g} s): {cause}. Nothing of this step "
                "was kept: start the server again and resume from the last checkpoint."
            ) from cause
        if waited >= self._tell_at:
            left = self._max_wait - waited
            _log.warning(
                "reward server %s is away (%s); paused for %.0f s, %.0f s left", self._url, cause, waited, left
            )
            self._tell_at = max(10.0, 2 * waited)
        time.sleep(min(self._next, self._max_wait - waited))
        self._next = min(2 * self._next, LONGEST_PAUSE)

    def end(self) -> None:
        """Says that the run goes on, if it was paused."""
        if self._start is not None:
            _log.warning("reward server %s is back after %.0f s", self._url, time.monotonic() - self._start)
