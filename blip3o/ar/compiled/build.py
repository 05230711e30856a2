"""Compiling the kernel, once a machine, and loading it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("step.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
"""No flag changes how other code of the process rounds."""


@lru_cache
def library() -> ctypes.CDLL:
    """The kernel, compiled by `$CXX`, `g++` or `clang++` unless the cache folder holds it.

    The cache is `blip3o` in `$XDG_CACHE_HOME`, or in `~/.cache`; a file's name tells source, compiler and processor.

    Raises:
        ValueError: if there is no compiler, or it fails.
    """
    compiler = _compiler()
    told = "\n".join([SOURCE.read_text(), *FLAGS, _version(compiler), _processor()])
    name = f"step-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blip3o"
    if not (folder / name).is_file():
        _compile(compiler, folder, name)
    return ctypes.CDLL(str(folder / name))


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise ValueError(
        "decoding can not be compiled: there is no C++ compiler; install g++ (such as `apt install g++`), set CXX, or "
        "decode without compile_decoding."
    )


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _compile(compiler: str, folder: Path, name: str) -> None:
    """Into a file of its own first, so that another process never loads half of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _run([compiler, *FLAGS, str(SOURCE), "-o", f"{scratch}/{name}"])
            Path(scratch, name).replace(folder / name)
    except OSError as error:
        raise ValueError(
            f"decoding can not be compiled into {folder} ({error}); set XDG_CACHE_HOME to a folder that can be written."
        ) from error


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip() or "no message").splitlines()[0]
        raise ValueError(
            f"decoding can not be compiled: `{' '.join(command[:1])}` ended with code {done.returncode} ({told}); set "
            "CXX to a compiler with OpenMP, or decode without compile_decoding."
        )
    return done.stdout


def _processor() -> str:
    """What the code may use: the processor's instructions, which `-march=native` reads."""
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        return platform.processor()
    lines = told.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
