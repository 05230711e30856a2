"""Where runs execute: processes of this machine, a Slurm cluster (`submitit`), or a Ray cluster (`ray`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from blip3o.ablation.runs import LOG

LAUNCHERS = ("local", "slurm", "ray")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_GRACE = 5.0  # seconds that a process has to end when asked to


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""

    def stop(self) -> None:
        """Ends it."""


class Launcher(Protocol):
    """Starts runs."""

    def submit(self, folder: Path) -> Handle:
        """Starts the run of a folder; its output goes to the folder's log."""

    def close(self) -> None:
        """Gives back what the launcher holds."""


def build_launcher(name: str, root: Path, *, jobs: int, options: Mapping[str, Any] | None = None) -> Launcher:
    """A launcher by name.

    Args:
        name: one of `LAUNCHERS`.
        root: the ablation's folder.
        jobs: runs at a time.
        options: the plan's options for it: parameters of `submitit`, or options of a Ray task.

    Raises:
        ValueError: if it is unknown, its package is missing, or its cluster can not be reached.
    """
    if name not in LAUNCHERS:
        raise ValueError(f"launcher ({name}) must be one of {', '.join(LAUNCHERS)}.")
    if name == "slurm":
        return SlurmLauncher(root, jobs=jobs, options=options or {})
    if name == "ray":
        return RayLauncher(jobs=jobs, options=options or {})
    return LocalLauncher(jobs=jobs)


def num_threads(jobs: int) -> int:
    """Threads of each of `jobs` runs that share this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment, with so many threads; a number that the user set stays."""
    env = dict(os.environ)
    if threads is not None:
        for name in _THREADS:
            env.setdefault(name, env.get("OMP_NUM_THREADS", str(threads)))
    return env | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(folder: Path, jobs: int | None) -> list[str]:
    """The command line of a run; `jobs` is how many may share its machine, where that is known."""
    words = [sys.executable, "-m", "blip3o.ablation.run", str(folder.resolve())]
    return words if jobs is None else [*words, "--jobs", str(jobs)]


class LocalLauncher:
    """Processes of this machine, which share its cores."""

    def __init__(self, *, jobs: int) -> None:
        self.env = environment(num_threads(jobs))
        self.jobs = jobs

    def submit(self, folder: Path) -> Handle:
        """Starts a process that ends when this one does."""
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*command(folder, self.jobs), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
            )
        return _Process(process)

    def close(self) -> None:
        """Holds nothing."""


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
                return


def _caller(folder: Path, threads: int | None, jobs: int | None) -> Callable[[], int]:
    """A function that does a run elsewhere; it needs nothing but the standard library to be sent there."""
    words, log, cwd, env = command(folder, jobs), str((folder / LOG).resolve()), str(Path.cwd()), environment(threads)

    def call() -> int:
        import os
        import subprocess

        with open(log, "ab") as file:  # noqa: PTH123
            parent = ["--parent", str(os.getpid())]
            return subprocess.call([*words, *parent], cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT)

    return call


class SlurmLauncher:
    """Jobs of a Slurm cluster through `submitit`; the plan's `slurm` holds submitit's parameters.

    Args:
        root: the ablation's folder, which all nodes must see.
        jobs: jobs in the queue at a time.
        options: such as `{slurm_partition: gpu, gpus_per_node: 1, timeout_min: 120}`; `cluster: local` runs them here.
    """

    def __init__(self, root: Path, *, jobs: int, options: Mapping[str, Any]) -> None:
        submitit = _extra("submitit", "slurm")
        given = dict(options)
        cluster = given.pop("cluster", "slurm")
        self.jobs = jobs if cluster == "local" else None
        self.threads = given.get("cpus_per_task") or (num_threads(jobs) if cluster == "local" else None)
        try:
            self.executor = submitit.AutoExecutor(folder=root / "slurm", cluster=cluster)
            self.executor.update_parameters(name="blip3o", **given)
        except Exception as error:  # submitit raises what its plugins raise
            raise ValueError(f"launcher (slurm) can not be used: {error}; see the plan's `slurm`.") from error

    def submit(self, folder: Path) -> Handle:
        """Queues a job."""
        return _SlurmJob(self.executor.submit(_caller(folder, self.threads, self.jobs)))

    def close(self) -> None:
        """Holds nothing."""


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return 1 if self.job.exception() is not None else int(self.job.result())

    def stop(self) -> None:
        self.job.cancel()


class RayLauncher:
    """Tasks of a Ray cluster: that of `RAY_ADDRESS`, or one that lives on this machine for as long as it is needed.

    Args:
        jobs: tasks at a time.
        options: of a task, such as `{num_gpus: 1}`.
    """

    def __init__(self, *, jobs: int, options: Mapping[str, Any]) -> None:
        self.ray = _extra("ray", "ray")
        address = os.environ.get("RAY_ADDRESS")
        self.threads = num_threads(jobs)
        self.jobs = None if address else jobs
        here = {} if address else {"num_cpus": jobs * self.threads, "include_dashboard": False}
        self.started = not self.ray.is_initialized()
        if self.started:
            try:
                self.ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
            except Exception as error:  # Ray has no common base of what it raises here
                raise ValueError(f"launcher (ray) can not reach a cluster: {error}; check RAY_ADDRESS.") from error
        self.options = {"num_cpus": self.threads, "max_retries": 0, **options}

    def submit(self, folder: Path) -> Handle:
        """Queues a task."""
        task = self.ray.remote(_caller(folder, self.threads, self.jobs)).options(**self.options)
        return _RayTask(self.ray, task.remote())

    def close(self) -> None:
        """Ends the cluster if it was started here."""
        if self.started:
            self.ray.shutdown()


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray = ray
        self.reference = reference

    def poll(self) -> int | None:
        done, _ = self.ray.wait([self.reference], timeout=0)
        if not done:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=True)


def _extra(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"launcher ({extra}) needs the package {package}; install it with `pip install 'blip3o[{extra}]'`."
        ) from error
