"""ProcessReward: the numbers of the reward itself, what fails in a worker told in full, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3o.rewards import ProcessReward, ShapesReward
from tests.rewards.test_remote import IMAGES, METADATA, PROMPTS
from tests.rewards.toys import Brightness, Failing, Unready

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def failing() -> Iterator[ProcessReward]:
    reward = ProcessReward(Failing(), num_workers=1, chunk_size=4)
    yield reward
    reward.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def workers(reward: ProcessReward) -> list[int]:
    assert reward._pool is not None
    return list(reward._pool._processes)


def test_scores_are_those_of_the_reward_itself_to_the_last_bit_from_several_processes(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[3] = 0
    reward = ProcessReward(Brightness(delay=0.2, folder=str(tmp_path)), num_workers=2, chunk_size=2)
    assert (reward.name, reward.range) == ("brightness", (0.0, 1.0))
    for _ in range(2):
        scores = reward(images, PROMPTS, METADATA)
        assert np.array_equal(scores, Brightness()(images, PROMPTS, METADATA), equal_nan=True)
    assert reward(images[:0], [], []).shape == (0,)
    calls = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
    assert len(calls) == 8 and set(calls) == set(workers(reward)) and os.getpid() not in calls
    pids = workers(reward)
    reward.close()
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_the_shapes_reward_is_the_same_in_processes() -> None:
    plain = ShapesReward("shapes-mini", form="soft")
    reward = ProcessReward(plain, num_workers=1, chunk_size=3)
    swapped = PROMPTS[1:] + PROMPTS[:1]
    assert np.array_equal(reward(IMAGES, swapped, METADATA), plain(IMAGES, swapped, METADATA))
    pids = workers(reward)
    del reward
    assert until(lambda: not any(alive(pid) for pid in pids)), "workers end with the object that uses them"


@pytest.mark.parametrize(
    ("prompt", "error", "told"),
    [
        ("refuse", ValueError, r"failed in a worker process:\nTraceback(.|\n)*toys\.py(.|\n)*ValueError: prompts must"),
        ("break", RuntimeError, r"failed in a worker process:\nTraceback(.|\n)*toys\.py(.|\n)*KeyError: 'a fault of"),
        ("short", ValueError, r"gave scores \(3,\) for 4 images"),
        ("die", RuntimeError, r"a worker process of reward 'failing' ended without a word"),
    ],
)
def test_what_fails_is_told_in_full_and_the_next_call_works_again(
    failing: ProcessReward, prompt: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        failing(IMAGES, [prompt] * 7, METADATA)
    assert failing(IMAGES, PROMPTS, METADATA).tolist() == [0.0] * 7


def test_a_reward_that_can_not_be_made_ready_or_copied_is_found_out_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"reward 'unready' failed in a worker process:(.|\n)*model \(nothing\)"):
        ProcessReward(Unready(), num_workers=1).prepare()

    class Local(Brightness):
        pass

    with pytest.raises(ValueError, match="reward 'brightness' can not be copied to a worker process: "):
        ProcessReward(Local()).prepare()
    for argument in ("num_workers", "chunk_size"):
        with pytest.raises(ValueError, match=rf"{argument} \(0\)"):
            ProcessReward(Brightness(), **{argument: 0})


SCRIPT = """
import sys, time
import numpy as np
from blip3o.rewards import ProcessReward
from tests.rewards.toys import Brightness
if __name__ == "__main__":
    reward = ProcessReward(Brightness(), num_workers=1, chunk_size=1)
    reward(np.ones((4, 8, 8, 3), np.uint8), ["a"] * 4, [{}] * 4)
    print(*reward._pool._processes, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_workers_end_with_the_process_that_uses_them_even_if_it_is_killed(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert pids and all(alive(pid) for pid in pids)
    if killed:
        process.send_signal(signal.SIGKILL)
    process.communicate("", timeout=20)
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_workers_of_a_worker_end_with_it() -> None:
    reward = ProcessReward(ProcessReward(Brightness(), num_workers=1), num_workers=1)
    assert np.array_equal(reward(IMAGES, PROMPTS, METADATA), Brightness()(IMAGES, PROMPTS, METADATA))
    pids = workers(reward)
    reward.close()
    assert until(lambda: not any(alive(pid) for pid in pids))
