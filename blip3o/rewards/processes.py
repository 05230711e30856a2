"""A reward scored by several worker processes at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.util import Finalize

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, in full, and whether it is the user's to mend."""

    told: str
    is_refusal: bool


class ProcessReward(Reward):
    """Another reward, scored in processes of their own, each of which has a copy of it.

    Pictures are handed out in chunks whose limits depend on `chunk_size` alone. A reward that judges each picture by
    itself, as all of blip3o's do, so gives the numbers that it gives without workers; models may differ in the last
    bits where they see chunks of another size. Scoring does not go on beside the next rollout: that rollout is drawn
    by the policy that these very scores are about to change.

    Workers start anew (`spawn`), so a script that trains must guard what it does by `if __name__ == "__main__"`. They
    end with the process that uses them, however that ends. In a run of several processes each has its own workers.

    Args:
        reward: what scores. It is copied before it is made ready, so that only the workers load its models.
        num_workers: processes.
        chunk_size: pictures that a worker is given at a time.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, reward: Reward, num_workers: int = 2, chunk_size: int = 16) -> None:
        for argument, value in (("num_workers", num_workers), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"{argument} ({value}) must be at least 1.")
        self.reward = reward
        self.name = reward.name
        self.range = reward.range
        self.num_workers = num_workers
        self.chunk_size = chunk_size
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self) -> None:
        """Starts the workers and makes the reward ready in each.

        Raises:
            ValueError: if the reward can not be copied to a process, or refuses to be made ready.
            RuntimeError: if that fails for another reason.
        """
        if self._pool is not None:
            return
        try:
            copy = pickle.dumps(self.reward)
        except Exception as error:
            raise ValueError(f"reward {self.name!r} can not be copied to a worker process: {error}") from error
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.num_workers, context, initializer=_start, initargs=(copy,))
        self._pool = pool
        # Unlike weakref's, it also runs in processes that multiprocessing started, before they wait for their own and
        # (by its priority) before the queue to the workers, through which they are told, is closed.
        self._end = Finalize(self, pool.shutdown, kwargs={"cancel_futures": True}, exitpriority=100)
        try:
            self._results([pool.submit(_ready) for _ in range(self.num_workers)])
        except Exception:
            self.close()
            raise

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) of the reward, in order.

        Raises:
            ValueError: if the reward refuses pictures or prompts, with the worker's traceback.
            RuntimeError: if it fails otherwise, with the worker's traceback; or if a worker ended without a word.
        """
        self.prepare()
        assert self._pool is not None, "it was just started"
        chunks = [slice(first, first + self.chunk_size) for first in range(0, len(images), self.chunk_size)]
        futures = [self._pool.submit(_score, images[some], list(prompts[some]), metadata[some]) for some in chunks]
        return np.concatenate([np.zeros(0), *self._results(futures)])

    def close(self) -> None:
        """Ends the workers; they start again when they are needed."""
        if self._pool is not None:
            self._end()
            self._pool = None

    def _results(self, futures: Sequence[Future[Scores | _Failure]]) -> list[Scores]:
        """What workers returned, or the first failure."""
        try:
            results = [future.result() for future in futures]
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError(
                f"a worker process of reward {self.name!r} ended without a word; it was killed, perhaps for want of "
                f"memory. Lower num_workers ({self.num_workers}) if so."
            ) from error
        scores = []
        for result in results:
            if isinstance(result, _Failure):
                kind = ValueError if result.is_refusal else RuntimeError
                raise kind(f"reward {self.name!r} failed in a worker process:\n{result.told}")
            scores.append(result)
        return scores

    def __getstate__(self) -> dict[str, object]:
        """Without the workers, which a copy starts for itself."""
        return {name: value for name, value in vars(self).items() if name != "_end"} | {"_pool": None}


_reward: Reward | _Failure | None = None  # in a worker


def _start(copy: bytes) -> None:
    """Makes the reward ready in a worker, which ends when the process that uses it is gone."""
    global _reward
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        reward: Reward = pickle.loads(copy)
        reward.prepare()
        _reward = reward
    except Exception as error:
        _reward = _failure(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)


def _ready() -> Scores | _Failure:
    return _reward if isinstance(_reward, _Failure) else np.zeros(0)


def _score(images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores | _Failure:
    if isinstance(_reward, _Failure):
        return _reward
    assert _reward is not None, "workers start with one"
    try:
        scores: Scores = np.asarray(_reward(images, prompts, metadata), dtype=np.float64)
        if scores.shape != (len(images),):
            raise ValueError(f"reward {_reward.name!r} gave scores {scores.shape} for {len(images)} images.")
        return scores
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> _Failure:
    return _Failure("".join(traceback.format_exception(error)), isinstance(error, ValueError | ImportError))
