"""OCRReward: the score of strings by hand, and of rendered words through the OCR model."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from blip3o.rewards.ocr import OCRReward, quoted, text_score


@pytest.mark.parametrize(
    ("read", "target", "expected"),
    [
        ("HELLO", "hello", 1.0),
        ("say Hel lo there", "hello", 1.0),  # contained, without white space
        ("", "hello", 0.0),
        ("help", "hello", 0.6),  # two edits of five letters
        ("jello", "hello", 0.8),
        ("something else altogether", "cat", 0.0),  # never below 0
    ],
)
def test_scores_by_hand(read: str, target: str, expected: float) -> None:
    pytest.importorskip("rapidfuzz")
    assert text_score(read, target) == pytest.approx(expected)


def test_the_target_is_the_first_text_in_quotes() -> None:
    assert quoted('a sign that says "Open now" beside "Closed"') == "Open now"
    assert quoted("a sign that says “Open”") == "Open"
    with pytest.raises(ValueError, match="quotes no text"):
        quoted("a sign")
    with pytest.raises(ValueError, match="at least one letter"):
        text_score("a", " ")


def word(text: str) -> np.ndarray:
    image = Image.new("RGB", (192, 96), "white")
    ImageDraw.Draw(image).text((96, 48), text, fill="black", font=ImageFont.load_default(44), anchor="mm")
    return np.asarray(image)


def test_words_are_read_from_pictures() -> None:
    pytest.importorskip("rapidocr")
    reward = OCRReward()
    images = np.stack([word("HELLO"), np.full((96, 192, 3), 255, dtype=np.uint8)])
    assert reward(images, ['the word "hello"'] * 2, [{}] * 2).tolist() == [1.0, 0.0]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"blip3o\[ocr\]"):
        OCRReward().prepare()
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(ImportError, match=r"rapidfuzz; .*blip3o\[ocr\]"):
        text_score("a", "b")
    with pytest.raises(ValueError, match=r"min_side \(0\)"):
        OCRReward(min_side=0)
