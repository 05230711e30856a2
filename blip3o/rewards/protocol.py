"""What a reward server and its clients say to each other: JSON, with pictures as base64 of PNG; nothing is pickled.

`GET /info` answers `{"protocol", "reward", "range": [least, greatest], "max_body"}`, with null for an end of the range
that is open. `POST /score` takes `{"protocol", "images", "prompts", "metadata"}`, the last three being lists of one
length, and answers `{"protocol", "reward", "range", "scores"}`, with null for a picture that could not be judged. What
goes wrong answers `{"protocol", "error"}` and a status of 400 or more.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from blip3o.rewards.base import Images, Metadata, Reward, Scores

PROTOCOL = 1
"""Changes whenever either side would misread the other."""
MAX_SIDE = 4096
"""Pixels of a picture's longer side: a small PNG may unfold to gigabytes."""
TOLERANCE = 1e-6
"""By how much, as a share of its ends, a score may leave its range: models round."""


class BadMessage(ValueError):
    """A message that does not follow the protocol; its text says how."""


@dataclass(frozen=True)
class Served:
    """The reward behind a server.

    Attributes:
        name: of the reward.
        range: least and greatest score; infinite where open.
    """

    name: str
    range: tuple[float, float]

    @classmethod
    def of(cls, reward: Reward) -> Served:
        """What a reward says of itself."""
        return cls(reward.name, (float(reward.range[0]), float(reward.range[1])))

    def fields(self) -> dict[str, Any]:
        """The part of a message that says so."""
        ends = [end if math.isfinite(end) else None for end in self.range]
        return {"protocol": PROTOCOL, "reward": self.name, "range": ends}


def encode(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, allow_nan=False).encode()


def encode_batch(images: Images, prompts: Sequence[str], metadata: Metadata) -> bytes:
    """A batch to score, images (B, H, W, 3) uint8.

    Raises:
        ValueError: if the metadata hold what JSON does not.
    """
    pictures = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        pictures.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    known = [dict(one) for one in metadata]
    try:
        return encode({"protocol": PROTOCOL, "images": pictures, "prompts": list(prompts), "metadata": known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata can not be sent as JSON ({error}); leave only plain values in it.") from error


def decode_batch(body: bytes) -> tuple[Images, list[str], list[dict[str, Any]]]:
    """Images (B, H, W, 3) uint8, prompts and metadata of a batch.

    Raises:
        BadMessage: if it does not follow the protocol.
    """
    message = _read(body, "the request")
    images, prompts = _list(message, "images", str), _list(message, "prompts", str)
    metadata = _list(message, "metadata", dict)
    if not images or not len(images) == len(prompts) == len(metadata):
        numbers = f"{len(images)}, {len(prompts)} and {len(metadata)}"
        raise BadMessage(f"images, prompts and metadata ({numbers}) must be as many, at least one.")
    pictures = [_picture(number, text) for number, text in enumerate(images)]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise BadMessage(f"images have several sizes {sizes}; send those of one size together.")
    return np.stack(pictures), prompts, metadata


def _list(message: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = message.get(name)
    if not isinstance(values, list) or not all(isinstance(one, kind) for one in values):
        raise BadMessage(f"{name} must be a list of {'objects' if kind is dict else 'texts'}.")
    return values


def _picture(number: int, text: str) -> Images:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if max(image.size) <= MAX_SIDE and image.mode == "RGB":
                return np.asarray(image)
            told = f"is {image.width} x {image.height} pixels of mode {image.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadMessage(f"images[{number}] is no PNG in base64 ({error}).") from error
    raise BadMessage(f"images[{number}] {told}; it must be RGB, at most {MAX_SIDE} pixels a side.")


def encode_scores(served: Served, scores: Scores) -> bytes:
    """The answer to a batch, from scores (B,).

    Raises:
        ValueError: if one is infinite.
    """
    return encode({**served.fields(), "scores": [None if math.isnan(one) else float(one) for one in scores]})


def decode_scores(body: bytes, served: Served, count: int) -> Scores:
    """Scores (B,) float64 of `count` pictures; NaN where one could not be judged.

    Raises:
        BadMessage: unless they are that many numbers, finite and within the range, from the reward `served`.
    """
    message = _read(body, "the answer")
    if (found := _served(message)) != served:
        raise BadMessage(f"the answer is that of reward {found.name!r} {found.range}, not {served.name!r}.")
    scores = message.get("scores")
    if not isinstance(scores, list) or len(scores) != count:
        told = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        raise BadMessage(f"the answer holds {told} for {count} pictures.")
    low, high = served.range
    for score in scores:
        if score is None:
            continue
        if not _is_number(score) or not math.isfinite(score):
            raise BadMessage(f"the answer holds the score {str(score)[:40]!r}, which is no finite number.")
        if not low - TOLERANCE * max(1, abs(low)) <= score <= high + TOLERANCE * max(1, abs(high)):
            raise BadMessage(f"the answer holds the score {score:.6g}, outside {low:g} to {high:g}.")
    return np.array([math.nan if score is None else score for score in scores], dtype=np.float64)


def decode_info(body: bytes) -> tuple[Served, int]:
    """The reward behind a server, and the bytes that a request may have.

    Raises:
        BadMessage: if it does not follow the protocol.
    """
    message = _read(body, "the answer")
    limit = message.get("max_body")
    if not isinstance(limit, int) or limit < 1:
        raise BadMessage(f"the answer's max_body ({limit!r}) is no number of bytes.")
    return _served(message), limit


def _served(message: dict[str, Any]) -> Served:
    name, ends = message.get("reward"), message.get("range")
    if not isinstance(name, str) or not isinstance(ends, list) or len(ends) != 2:
        raise BadMessage("the answer names no reward with a range.")
    if not all(end is None or _is_number(end) for end in ends):
        raise BadMessage(f"the answer's range ({ends}) is none.")
    low, high = (default if end is None else end for end, default in zip(ends, (-math.inf, math.inf), strict=True))
    return Served(name, (float(low), float(high)))


def _read(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object of this protocol."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{what} is no JSON but begins {body[:40]!r}.") from error
    if not isinstance(message, dict) or message.get("protocol") != PROTOCOL:
        found = message.get("protocol") if isinstance(message, dict) else type(message).__name__
        raise BadMessage(f"{what} is of protocol {found!r}, not {PROTOCOL}; use one version of blip3o on both sides.")
    return message


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
