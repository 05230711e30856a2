"""Doing all runs of a plan: state on disk, several at a time, failures noted, whatever happens to this process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip3o.ablation.files import locked, read_json, write_json
from blip3o.ablation.launchers import Handle, Launcher
from blip3o.ablation.runs import FAILURE, LOG, PROGRESS, RESULT, SETTINGS, Run

State = Literal["waiting", "running", "done", "failed"]
_PERIOD = 0.25  # seconds between two looks at what runs
_TAIL = 30  # lines of a log that are kept of a failure


@dataclass
class Task:
    """A run and how far it is.

    Attributes:
        run: what to do.
        folder: where.
        state: how far.
        share: of its steps that are done, in [0, 1].
        seconds: that it has taken.
    """

    run: Run
    folder: Path
    state: State = "waiting"
    share: float = 0.0
    seconds: float = 0.0
    handle: Handle | None = None
    started: float = 0.0

    def result(self) -> dict[str, Any] | None:
        """What the run wrote, or None while it is not done."""
        found = read_json(self.folder / RESULT)
        return dict(found) if found is not None else None


class Runner:
    """All runs of a plan in one folder.

    Args:
        runs: what to do.
        root: the ablation's folder.
        jobs: runs at a time.
        launcher: where they execute.
        on_change: called after every look, with the tasks.
        on_result: called with the result of every run that is done; what it raises ends everything.
    """

    def __init__(
        self,
        runs: list[Run],
        root: Path,
        *,
        jobs: int,
        launcher: Launcher,
        on_change: Callable[[list[Task]], None] = lambda tasks: None,
        on_result: Callable[[dict[str, Any]], object] = lambda result: None,
    ) -> None:
        self.jobs = jobs
        self.launcher = launcher
        self.on_change = on_change
        self.on_result = on_result
        self.tasks = [Task(run, run.folder(root)) for run in runs]

    def execute(self) -> list[Task]:
        """Does what is not done; returns the tasks, each done or failed. Whatever ends this also ends the runs."""
        for task in self.tasks:
            result = task.result()
            if result is not None:
                self.on_result(result)
                task.state, task.share = "done", 1.0
                task.seconds = result["timings"]["wall_seconds"]
        try:
            with _interruptible():
                while any(task.state in ("waiting", "running") for task in self.tasks):
                    self._look()
                    self.on_change(self.tasks)
                    time.sleep(_PERIOD)
        finally:
            for task in self.tasks:
                if task.state == "running" and task.handle is not None:
                    task.handle.stop()
        self.on_change(self.tasks)
        return self.tasks

    def _look(self) -> None:
        """Takes notice of what ended and fills the free places."""
        for task in self.tasks:
            if task.state == "running":
                self._follow(task)
        free = self.jobs - sum(task.state == "running" for task in self.tasks)
        for task in [task for task in self.tasks if task.state == "waiting"][:free]:
            self._start(task)

    def _start(self, task: Task) -> None:
        task.folder.mkdir(parents=True, exist_ok=True)
        write_json(task.folder / SETTINGS, task.run.settings)
        (task.folder / PROGRESS).unlink(missing_ok=True)
        (task.folder / LOG).write_text("")
        task.started = time.monotonic()
        task.handle = self.launcher.submit(task.folder)
        task.state = "running"

    def _follow(self, task: Task) -> None:
        assert task.handle is not None
        task.seconds = time.monotonic() - task.started
        progress = read_json(task.folder / PROGRESS)
        if progress and progress["max_steps"] > 0:
            task.share = progress["step"] / progress["max_steps"]
        code = task.handle.poll()
        if code is None:
            return
        result = task.result()
        if code == 0 and result is not None:
            self.on_result(result)
            task.state, task.share = "done", 1.0
            return
        task.state = "failed"
        write_json(task.folder / FAILURE, {"exit_code": code, "log": log_tail(task.folder)})


def log_tail(folder: Path) -> str:
    """The end of a run's log."""
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_TAIL:])


def time_left(tasks: list[Task], jobs: int) -> float | None:
    """Seconds until all is done, from the runs that are done or well under way; None if there is none yet."""
    took = [task.seconds for task in tasks if task.state == "done"]
    took += [task.seconds / task.share for task in tasks if task.state == "running" and task.share > 0.1]
    if not took:
        return None
    usual = sum(took) / len(took)
    left = sum(usual for task in tasks if task.state == "waiting")
    left += sum(max(0.0, usual - task.seconds) for task in tasks if task.state == "running")
    return left / jobs


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Holds a folder, so that no second runner works in it.

    Raises:
        ValueError: if one does, or the folder is a file or holds something else than an ablation.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"output_dir ({root}) is a file; name a folder.")
    if root.is_dir() and any(root.iterdir()) and not (root / ".lock").exists():
        raise ValueError(f"output_dir ({root}) holds files that are no ablation's; name another folder.")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(root / ".lock", wait=False))
        except BlockingIOError as error:
            raise ValueError(
                f"output_dir ({root}) is in use by another `blip3o ablate`; wait for it, or name another folder."
            ) from error
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that runs are ended too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone may set it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
