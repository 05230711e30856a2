"""GRPO with a reward on a server or in worker processes: the weights are those of a run that scores by itself."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from blip3o.cli import main
from blip3o.rewards import ProcessReward, RemoteReward
from tests.rewards.toys import Brightness
from tests.training.test_grpo_runs import config
from tests.training.toy import fit, grpo

ROOT = Path(__file__).parents[2]


class Server:
    """`blip3o reward-server` in a process of its own, which can be killed and started again at one address."""

    def __init__(self) -> None:
        self.port = "0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Starts it, and returns where once it listens."""
        words = ["reward-server", "--reward", "tests.rewards.toys.Brightness", "--port", self.port]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "blip3o.cli", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().split()[3]
        self.port = url.rsplit(":")[-1]
        return url

    def kill(self) -> None:
        """Ends it at once, as a machine that fails would."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.kill()


class Kill(Callback):
    """Kills the server after a step, and starts it again some time later if asked to."""

    def __init__(self, server: Server, step: int, *, again: bool) -> None:
        self.server, self.step, self.again = server, step, again

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.server.kill()
            if self.again:
                threading.Thread(target=self._start).start()

    def _start(self) -> None:
        time.sleep(0.3)
        self.server.start()


def weights(reward: Any, **arguments: Any) -> dict[str, torch.Tensor]:
    module = grpo(rewards=[reward], num_iterations=2)
    fit(module, steps=8, **arguments)
    return module.model.state_dict()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    """Weights of a run that scores in its own process."""
    return weights(Brightness())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_server_killed_and_started_again_pauses_the_run_and_changes_nothing(
    server: Server, undisturbed: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    reward = RemoteReward(server.start(), name="brightness", backoff=0.05, batch_size=3)
    with caplog.at_level(logging.WARNING, "blip3o"):
        ended = weights(reward, callbacks=[Kill(server, 4, again=True)])
    first, last = (record.message for record in caplog.records if record.name.startswith("blip3o"))
    assert "is away" in first and "is back after" in last
    assert same(undisturbed, ended)
    assert not same(undisturbed, grpo().model.state_dict()), "the run moved the weights"


def test_a_run_that_gave_up_resumes_to_the_weights_of_an_undisturbed_one(
    server: Server, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    reward = RemoteReward(server.start(), name="brightness", backoff=0.02, max_wait=0.1)
    checkpoints = {"enable_checkpointing": True}

    def callback() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last=True)

    with pytest.raises(ConnectionError, match="resume from the last checkpoint"):
        weights(reward, callbacks=[callback(), Kill(server, 4, again=False)], **checkpoints)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 4
    server.start()
    assert same(undisturbed, weights(reward, callbacks=[callback()], ckpt_path=tmp_path / "last.ckpt", **checkpoints))


def test_worker_processes_change_nothing(undisturbed: dict[str, torch.Tensor]) -> None:
    reward = ProcessReward(Brightness(), num_workers=2, chunk_size=3)
    assert same(undisturbed, weights(reward))
    reward.close()


def test_a_run_with_a_wrong_url_ends_in_one_message_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"url": "http://127.0.0.1:9", "backoff": 0.01}
    path = config(tmp_path, rewards=[{"class_path": "blip3o.rewards.RemoteReward", "init_args": arguments}])
    with torch.random.fork_rng(devices=[]):
        assert main(["fit", "--config", path]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "9" in line and "url" in line]
    assert len(told) == 1
    assert told[0].startswith("blip3o fit: url (http://127.0.0.1:9) can not be reached in 4 tries: ")
    assert not list(tmp_path.glob("runs/**/metrics.csv"))
