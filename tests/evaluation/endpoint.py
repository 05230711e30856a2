"""A server that speaks OpenAI's chat completions over HTTP, for one test."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-test"


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    prompt: str
    images: list[Image.Image]
    body: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A reply that is no answer: a status with an error as OpenAI words it, or a body as it is."""

    status: int
    message: str = "went wrong"
    body: str | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"retry-after-ms": "1"})


Reply = Callable[[Request], "str | Fault"]


class Endpoint:
    """The server's address and what it was asked; `reply` may be changed while it runs."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self.url = ""
        self.key = KEY


@contextmanager
def serving(reply: Reply) -> Iterator[Endpoint]:
    """Serves on a free port of this machine."""
    endpoint = Endpoint(reply)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                return self._send(404, _error("no such path"))
            if self.headers["Authorization"] != f"Bearer {endpoint.key}":
                return self._send(401, _error("Incorrect API key provided"))
            request = _read(body)
            endpoint.requests.append(request)
            reply = endpoint.reply(request)
            if isinstance(reply, Fault):
                text = _error(reply.message) if reply.body is None else reply.body
                return self._send(reply.status, text, reply.headers)
            return self._send(200, _completion(body["model"], reply))

        def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):  # the client has given up
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _read(body: dict[str, Any]) -> Request:
    """Checks that a body has the form that the protocol asks for."""
    (message,) = body["messages"]
    assert message["role"] == "user" and isinstance(body["model"], str)
    text, *parts = message["content"]
    assert text.keys() == {"type", "text"} and text["type"] == "text"
    images = []
    for part in parts:
        assert part["type"] == "image_url" and part["image_url"]["url"].startswith("data:image/png;base64,")
        data = base64.b64decode(part["image_url"]["url"].split(",", 1)[1], validate=True)
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG"
        images.append(image.convert("RGB"))
    return Request(text["text"], images, body)


def _completion(model: str, text: str) -> str:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return json.dumps(
        {
            **{"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": f"{model}-2024-11-20"},
            **{"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}},
        }
    )


def _error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})
