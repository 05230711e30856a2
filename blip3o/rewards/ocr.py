"""The reward for text in pictures: what an OCR model reads against what the prompt quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from blip3o.rewards.base import Images, Metadata, Reward, Scores

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


def quoted(prompt: str) -> str:
    """The first text in double quotes of a prompt.

    Raises:
        ValueError: if there is none.
    """
    match = _QUOTED.search(prompt)
    if match is None:
        raise ValueError(f'prompt ({prompt!r}) quotes no text; put what the picture should say in "double quotes".')
    return match.group(1) or match.group(2)


def text_score(read: str, target: str) -> float:
    """How much of `target` was read, in [0, 1].

    Both lose their white space and their capitals; 1 where what was read contains the target, else
    1 - min(d, len) / len with d the Levenshtein distance and len the target's length.

    Raises:
        ValueError: if the target holds no letter.
        ImportError: without rapidfuzz.
    """
    read, target = ("".join(text.split()).lower() for text in (read, target))
    if not target:
        raise ValueError(f"target ({target!r}) must hold at least one letter.")
    if target in read:
        return 1.0
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise _missing("rapidfuzz") from error
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)


class OCRReward(Reward):
    """How well a picture renders the text that its prompt quotes; read by rapidocr (ONNX, on the CPU).

    Needs the extra `blip3o[ocr]`; the model comes with the package, nothing is downloaded.

    Args:
        min_side: pictures whose shorter side is below are enlarged to it before they are read.
        name: under which it is logged.

    Raises:
        ValueError: if `min_side` is below 1.
    """

    def __init__(self, min_side: int = 256, name: str = "ocr") -> None:
        if min_side < 1:
            raise ValueError(f"min_side ({min_side}) must be at least 1 pixel.")
        self.min_side = min_side
        self.name = name

    @cached_property
    def _engine(self) -> Any:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise _missing("rapidocr") from error
        return RapidOCR(params={"Global.log_level": "error"})

    def prepare(self) -> None:
        """Loads the reader; raises an ImportError without rapidocr."""
        _ = self._engine

    def read(self, image: np.ndarray) -> str:
        """All text of a picture (H, W, 3) uint8, line after line."""
        picture = Image.fromarray(image)
        factor = self.min_side / min(picture.size)
        if factor > 1:
            size = (round(picture.width * factor), round(picture.height * factor))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return "".join(self._engine(picture).txts or ())

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1].

        Raises:
            ValueError: if a prompt quotes no text.
        """
        targets = [quoted(prompt) for prompt in prompts]
        return np.array([text_score(self.read(image), target) for image, target in zip(images, targets, strict=True)])


def _missing(package: str) -> ImportError:
    return ImportError(f"OCRReward needs {package}; install the extra with `pip install 'blip3o[ocr]'`.")
