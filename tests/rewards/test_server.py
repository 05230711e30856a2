"""RewardServer: what it answers to anything but its own client, and how `blip3o reward-server` starts and stops."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from blip3o.rewards import RemoteReward, ShapesReward
from blip3o.rewards.server import RewardServer
from blip3o.rewards.spec import read_reward
from tests.rewards.test_remote import IMAGES, METADATA, PROMPTS, serving
from tests.rewards.toys import Brightness, Unready

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with serving(Brightness(), max_body=2**20) as running:
        yield running


def ask(server: RewardServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)  # type: ignore[arg-type]
    connection.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), headers)
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(response.read())


def png(width: int = 4, height: int = 4, mode: str = "RGB", format: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


def batch(*images: str, **changes: Any) -> dict[str, Any]:
    count = len(images)
    return {"protocol": 1, "images": [*images], "prompts": ["a"] * count, "metadata": [{}] * count, **changes}


def test_it_says_what_it_is_and_scores(server: RewardServer) -> None:
    info = {"protocol": 1, "reward": "brightness", "range": [0.0, 1.0], "max_body": 2**20}
    assert ask(server, "GET", "/info") == (200, info)
    status, answer = ask(server, "POST", "/score", batch(png(), png()))
    assert (status, answer.pop("scores")) == (200, [None, None])  # black pictures can not be judged
    assert answer == {key: info[key] for key in ("protocol", "reward", "range")}


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"\xff\xfe", "the request is no JSON"),
    "nested too deep": (b"[" * 100_000, "the request is no JSON"),
    "protocol": (batch(png(), protocol=7), "of protocol 7, not 1"),
    "nothing": (batch(), "must be as many, at least one"),
    "too few prompts": (batch(png(), prompts=[]), r"(1, 0 and 1) must be as many"),
    "prompts of numbers": (batch(png(), prompts=[1]), "prompts must be a list of texts"),
    "metadata of text": (batch(png(), metadata=["a"]), "metadata must be a list of objects"),
    "no base64": (batch("?"), "images[0] is no PNG in base64"),
    "no picture": (batch(base64.b64encode(b"GIF89a").decode()), "images[0] is no PNG"),
    "half a picture": (batch(base64.b64encode(base64.b64decode(png(32, 32))[:50]).decode()), "images[0] is no PNG"),
    "JPEG": (batch(png(format="JPEG")), "images[0] is no PNG"),
    "grey": (batch(png(), png(mode="L")), "images[1] is 4 x 4 pixels of mode L; it must be RGB"),
    "huge": (batch(png(4097, 1)), "images[0] is 4097 x 1 pixels of mode RGB; it must be RGB, at most 4096"),
    "several sizes": (batch(png(), png(8, 8)), "images have several sizes [(4, 4), (8, 8)]"),
}


@pytest.mark.parametrize(("body", "told"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_request_is_answered_with_what_is_wrong(server: RewardServer, body: Any, told: str) -> None:
    status, answer = ask(server, "POST", "/score", body)
    assert status == 400 and told in answer["error"] and answer["protocol"] == 1


def test_other_paths_methods_and_lengths_are_refused(server: RewardServer) -> None:
    assert ask(server, "GET", "/")[0] == ask(server, "POST", "/info", {})[0] == 404
    assert ask(server, "PUT", "/score", {}) == (501, {"protocol": 1, "error": "Unsupported method ('PUT')"})
    assert ask(server, "POST", "/score", None, **{"Content-Length": "x"})[0] == 411
    status, answer = ask(server, "POST", "/score", None, **{"Content-Length": str(2**20 + 1)})
    assert status == 413 and "more than max_body (1048576)" in answer["error"]


def test_it_listens_at_this_machine_alone_unless_told_otherwise(server: RewardServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError, match=rf"port \({server.server_address[1]}\) can not be used: .*; choose others"):
        RewardServer(Brightness(), port=server.server_address[1])
    with pytest.raises(ValueError, match=r"port \(65536\)"):
        RewardServer(Brightness(), port=65536)
    with pytest.raises(ValueError, match=r"max_body \(0\)"):
        RewardServer(Brightness(), max_body=0)


def test_nobody_is_heard_before_the_reward_is_ready() -> None:
    with RewardServer(Unready()) as server:
        with pytest.raises(ValueError, match="model \\(nothing\\) is unknown"):
            server.open()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.server_address[:2], timeout=1)  # type: ignore[arg-type]


def command(*args: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "blip3o.cli", "reward-server", *args]
    return subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_command_serves_what_a_file_describes_and_stops_gracefully(tmp_path: Path) -> None:
    """What is being scored at SIGTERM is still answered; then the process ends with 0."""
    spec = tmp_path / "reward.yaml"
    args = {"delay": 0.5, "folder": str(tmp_path)}
    spec.write_text(yaml.safe_dump({"class_path": "tests.rewards.toys.Brightness", "init_args": args}))
    process = command("--reward", str(spec), "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("reward brightness at http://127.0.0.1:")
    reward = RemoteReward(line.split()[3])
    reward.prepare()
    scores: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: scores.append(reward(IMAGES, PROMPTS, METADATA)))
    thread.start()
    while not list(tmp_path.glob("*-*")):  # until it is being scored
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    thread.join()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert np.array_equal(scores[0], Brightness()(IMAGES, PROMPTS, METADATA))


def test_a_reward_is_named_by_its_class_or_by_a_file(tmp_path: Path) -> None:
    assert isinstance(read_reward("blip3o.rewards.ShapesReward"), ShapesReward)
    path = tmp_path / "sum.yaml"
    inner = {"class_path": "blip3o.rewards.ShapesReward", "init_args": {"form": "soft"}}
    path.write_text(yaml.safe_dump({"class_path": "blip3o.rewards.WeightedSum", "init_args": {"rewards": [inner]}}))
    assert read_reward(str(path)).rewards[0].name == "shapes_soft"  # type: ignore[attr-defined]
    inner["init_args"]["form"] = "hard"  # type: ignore[index]
    path.write_text(yaml.safe_dump(inner))
    with pytest.raises(ValueError, match=r"reward \(.*sum\.yaml\) can not be built: .*hard"):
        read_reward(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold a class_path"):
        read_reward(str(path))
    with pytest.raises(ValueError, match=r"reward \(nothing\.yaml\) can not be read"):
        read_reward("nothing.yaml")
    with pytest.raises(ValueError, match=r"reward \(blip3o\.rewards\.Nothing\) can not be built"):
        read_reward("blip3o.rewards.Nothing")
    with pytest.raises(ValueError, match=r"reward \(pathlib\.Path\) can not be built"):
        read_reward("pathlib.Path")


def test_the_command_tells_what_is_wrong_in_one_line() -> None:
    process = command("--reward", "blip3o.rewards.Nothing")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("blip3o reward-server: reward (blip3o.rewards.Nothing) can not be built: ")
