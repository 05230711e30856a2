"""Compiling the kernel, once a machine, and loading it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
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
        ValueError: if there is no compiler, also where the cache has the kernel; or it fails; or the cache can not be
            used.
    """
    compiler = _compiler()
    told = "\n".join([SOURCE.read_text(), *FLAGS, _run([*compiler, "--version"]), _processor()])
    name = f"step-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    folder: Path | str = "~/.cache/blip3o"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blip3o"
        if not (folder / name).is_file():
            _compile(compiler, folder, name)
        return ctypes.CDLL(str(folder / name))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the compiled kernel can not be kept in {folder} ({error}); set XDG_CACHE_HOME to a folder that can be "
            "written and run from."
        ) from error


def _compiler() -> list[str]:
    """The command, which `$CXX` may give with arguments.

    Raises:
        ValueError: if there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    told = f"CXX ({chosen[0]}) is not there" if chosen else "there is no C++ compiler"
    raise ValueError(
        f"decoding can not be compiled: {told}; install g++ (such as `apt install g++`), set CXX, or decode without "
        "compile_decoding."
    )


def _compile(compiler: list[str], folder: Path, name: str) -> None:
    """Into a file of its own first, so that another process never loads half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run([*compiler, *FLAGS, str(SOURCE), "-o", f"{scratch}/{name}"])
        Path(scratch, name).replace(folder / name)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        told = next((line for line in lines if "error" in line), lines[0])
        raise ValueError(
            f"decoding can not be compiled: `{command[0]}` ended with code {done.returncode} ({told}); set CXX to a "
            "C++17 compiler with OpenMP, or decode without compile_decoding."
        )
    return done.stdout


def _processor() -> str:
    """What the code may use: the processor's instructions, which `-march=native` reads."""
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        return platform.processor()
    lines = told.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
