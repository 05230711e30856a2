"""A check at start-up that the models behind the GenEval reward see what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from blip3o.rewards.base import Images, Metadata
from blip3o.rewards.geneval_rules import Outcome

FOLDER = Path(__file__).parents[1] / "assets" / "geneval"
PICTURES: dict[str, dict[str, Any]] = {
    "stop_sign.png": {
        "tag": "colors",
        "include": [{"class": "stop sign", "count": 1, "color": "red"}],
        "exclude": [{"class": "clock", "count": 1}],
    },
    "clock.png": {
        "tag": "single_object",
        "include": [{"class": "clock", "count": 1}],
        "exclude": [{"class": "stop sign", "count": 1}],
    },
}
"""What each bundled picture shows, as GenEval's metadata."""


class Judge(Protocol):
    """What is tested."""

    def outcomes(self, images: Images, metadata: Metadata) -> list[Outcome]:
        """What GenEval's rules say of each picture."""


def check_pictures(judge: Judge, models: str) -> None:
    """Raises a ValueError unless both bundled pictures are judged right.

    Args:
        judge: a GenEval reward.
        models: what its models are called, for the message.
    """
    images = np.stack([np.asarray(Image.open(FOLDER / name).convert("RGB")) for name in PICTURES])
    outcomes = judge.outcomes(images, list(PICTURES.values()))
    wrong = [f"{name}: {seen.reason}" for name, seen in zip(PICTURES, outcomes, strict=True) if not seen.correct]
    if wrong:
        raise ValueError(
            f"self-test: the {models} misjudge the bundled pictures in {FOLDER} ({'; '.join(wrong)}), so their rewards "
            "would mean nothing; check that these are the trained models, or pass self_test=False to go on regardless."
        )
