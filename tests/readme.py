"""The code blocks of README.md."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """All fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    """The one block that contains a text."""
    found = [text for text in blocks(language) if containing in text]
    assert len(found) == 1, f"{len(found)} blocks contain {containing!r}"
    return found[0]
