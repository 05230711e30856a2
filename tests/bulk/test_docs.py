"""docs/rendering.md does what it says: its commands parse, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from blip3o.cli import build_parser

TEXT = (Path(__file__).parents[2] / "docs/rendering.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("blip3o ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str) -> None:
    build_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/rendering.md", "exec"), {"__name__": "docs"})
    assert {path.name for path in (tmp_path / "runs/many").iterdir()} >= {"00000.png", "hat.png", "images.jsonl"}
