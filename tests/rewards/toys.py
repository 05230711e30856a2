"""Rewards that load nothing, for servers and worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip3o.rewards.base import Reward


class Brightness(Reward):
    """How bright a picture is; NaN for black ones.

    Args:
        delay: seconds that a call takes.
        folder: where each call leaves a file, for tests that count them.
    """

    name = "brightness"

    def __init__(self, delay: float = 0.0, folder: str | None = None) -> None:
        self.delay = delay
        self.folder = folder

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        if self.folder is not None:
            Path(self.folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.delay)
        bright = images.mean((1, 2, 3)) / 255
        return np.where(bright > 0, bright, np.nan)


class Failing(Reward):
    """Fails in a way that the prompt of the first picture names."""

    name = "failing"

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        match prompts[0]:
            case "refuse":
                raise ValueError("prompts must say something else.")
            case "break":
                raise KeyError("a fault of the reward")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "short":
                return np.zeros(len(images) - 1)
            case "infinite":
                return np.full(len(images), np.inf)
        return np.zeros(len(images))


class Unready(Reward):
    """Can not load its model."""

    name = "unready"

    def prepare(self) -> None:
        raise ValueError("model (nothing) is unknown.")

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        raise AssertionError("it was never ready")
