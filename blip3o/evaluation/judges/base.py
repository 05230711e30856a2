"""The contract of a judge, and the two ways in which one can fail to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


class Unanswered(ValueError):
    """A judge could not answer this request, though it may answer others; the message is the reason."""


class JudgeStopped(ValueError):
    """A judge can answer no request at all, such as for a wrong key; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """What a judge wrote.

    Attributes:
        text: the words.
        version: of the model that wrote them, as exact as is known.
    """

    text: str
    version: str


class Judge(ABC):
    """Answers questions about pictures.

    Attributes:
        id: names the judge in every record; scores of two judges never mix.
        max_concurrency: requests that it takes at a time, each from a thread of its own.
        settings: what else decides its answers, as plain values.
    """

    id: str
    max_concurrency: int = 1
    settings: dict[str, Any]

    def check(self) -> None:  # noqa: B027 (a judge may need nothing)
        """Raises where something is missing that costs little to look for, such as a package or a key.

        Raises:
            ValueError: if the judge can not be used.
            ImportError: if a package is missing.
        """

    def prepare(self) -> None:  # noqa: B027 (a judge may have nothing to load)
        """Loads what answering needs; building a judge loads nothing."""

    @abstractmethod
    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Answer:
        """Answers `prompt` about `images`, which the judge sees in their order, after the words.

        Raises:
            Unanswered: if this request failed.
            JudgeStopped: if every other would fail too.
        """
