"""Files that are whole or not there, and locks that die with their owner."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """Writes JSON through a file of this process that takes the place of `path` when whole."""
    write_text(path, json.dumps(values, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock that the system releases with this process, however it ends.

    Args:
        path: the lock's file; it stays.
        wait: whether to wait for another owner.

    Raises:
        BlockingIOError: if there is another owner and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
