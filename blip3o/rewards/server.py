"""A small server that scores pictures for `RemoteReward`, with any reward."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores
from blip3o.rewards.protocol import PROTOCOL, BadMessage, Served, decode_batch, encode, encode_scores

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RewardServer(ThreadingHTTPServer):
    """Answers `/info` and `/score` of `blip3o.rewards.protocol`.

    Several clients may ask at once; pictures are scored one request after the other, as rewards need not be made for
    threads. The port is taken at once, but nobody is heard before `open`, so that clients of a server that still loads
    its models wait for it.

    Args:
        reward: what scores.
        host: address to listen at.
        port: of it; any free one when 0.
        max_body: bytes of a request, at most.

    Raises:
        ValueError: if a number is out of range.
        OSError: if the address can not be taken.
    """

    daemon_threads = False  # closing waits for what is being scored
    request_queue_size = 128

    def __init__(self, reward: Reward, host: str = "127.0.0.1", port: int = 0, max_body: int = 256 * 2**20) -> None:
        if not 0 <= port < 2**16:
            raise ValueError(f"port ({port}) must lie in 0..65535.")
        if max_body < 1:
            raise ValueError(f"max_body ({max_body}) must be at least 1 byte.")
        super().__init__((host, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except OSError as error:
            self.server_close()
            raise OSError(f"host ({host}) and port ({port}) can not be used: {error}; choose others.") from error
        self.reward = reward
        self.max_body = max_body
        self._scoring = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def open(self) -> None:
        """Makes the reward ready, then listens."""
        self.reward.prepare()
        self.server_activate()

    def info(self) -> bytes:
        """What `/info` answers."""
        return encode({**Served.of(self.reward).fields(), "max_body": self.max_body})

    def score(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> bytes:
        """What `/score` answers."""
        with self._scoring:
            scores: Scores = np.asarray(self.reward(images, prompts, metadata), dtype=np.float64)
        if scores.shape != (len(images),) or np.isinf(scores).any():
            raise RuntimeError(f"reward {self.reward.name!r} gave {scores} for {len(images)} images.")
        return encode_scores(Served.of(self.reward), scores)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps quiet about clients that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request; every answer is JSON, and ends the connection."""

    server: RewardServer
    timeout = 20.0  # seconds for which a client may be silent

    def do_GET(self) -> None:
        """Answers `/info`."""
        if self.path != "/info":
            self.send_error(HTTPStatus.NOT_FOUND, f"there is no GET {self.path[:80]}; use /info, or POST to /score.")
            return
        self._answer(HTTPStatus.OK, self.server.info())

    def do_POST(self) -> None:
        """Answers `/score`."""
        if self.path != "/score":
            self.send_error(HTTPStatus.NOT_FOUND, f"there is no POST {self.path[:80]}; use /score.")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "the request must say its Content-Length.")
            return
        if int(length) > self.server.max_body:
            told = f"the request has {length} bytes, more than max_body ({self.server.max_body}); send fewer pictures."
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
            return
        body = self.rfile.read(int(length))
        try:
            answer = self.server.score(*decode_batch(body))
        except BadMessage as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except ValueError as error:  # the reward does not take these prompts or pictures
            self.send_error(HTTPStatus.UNPROCESSABLE_ENTITY, f"reward {self.server.reward.name!r}: {error}")
        except Exception as error:
            traceback.print_exc()
            told = f"reward {self.server.reward.name!r} failed with {type(error).__name__}: {error}"
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, told)
        else:
            self._answer(HTTPStatus.OK, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers with an error, as JSON."""
        self._answer(code, encode({"protocol": PROTOCOL, "error": message or HTTPStatus(code).phrase}))

    def _answer(self, status: int, body: bytes) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of single requests."""


def serve(server: RewardServer) -> None:
    """Serves until SIGTERM or Ctrl-C; what is being scored then is still answered."""

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()  # it waits for the loop, which is in this thread

    with server:
        server.open()
        earlier = {number: signal.signal(number, stop) for number in SHUTDOWN_SIGNALS}
        print(f"reward {server.reward.name} at {server.url} (protocol {PROTOCOL}); stop with Ctrl-C", flush=True)
        server.serve_forever(poll_interval=0.1)
    for number, handler in earlier.items():
        signal.signal(number, handler)
    print("stopped", flush=True)
