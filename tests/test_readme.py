"""README.md does what it says: its Python runs, its commands parse, its links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from blip3o.cli import LIGHTNING, build_parser
from tests.readme import README, blocks

ROOT = README.parent


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_shapes_printed_beside_the_code_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for code in blocks("python"):
        printed = re.search(r"^print\((?P<what>.*)\)  # (?P<shapes>\(.*\))(:.*)?$", code, flags=re.MULTILINE)
        if printed is None or "from_pretrained" in code:
            continue
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        output = re.findall(r"torch\.Size\(\[([\d, ]+)\]\)", capsys.readouterr().out)
        assert [f"({sizes})" for sizes in output] == re.findall(r"\([\d, ]+\)", printed["shapes"])
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("line", [line for text in blocks("sh") for line in text.splitlines() if "blip3o " in line])
def test_commands_parse_and_name_files_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[next(i for i, word in enumerate(words) if word.endswith("blip3o")) + 1 :]
    for word in words:
        assert not word.startswith("experiments/") or (ROOT / word).is_file()
    if words[0] not in LIGHTNING:
        build_parser().parse_args(words)


def test_make_targets_and_links_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
