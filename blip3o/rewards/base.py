"""The contract of a reward, and the weighted sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Metadata = Sequence[Mapping[str, Any]]
Scores = NDArray[np.float64]


class Reward(ABC):
    """Scores images against their prompts. It knows nothing of models, and is no part of one.

    Attributes:
        name: under which its mean is logged.
        range: least and greatest score.
    """

    name: str
    range: tuple[float, float] = (0.0, 1.0)

    def prepare(self) -> None:  # noqa: B027 (most have nothing to load)
        """Loads what scoring needs and checks that it works: building loads nothing, and a run calls this first."""

    @abstractmethod
    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,), higher is better; NaN where an image could not be judged.

        Args:
            images: (B, H, W, 3) uint8 RGB.
            prompts: B prompts.
            metadata: what is known of each prompt beside its words, such as a line of GenEval's
                `evaluation_metadata.jsonl`; an empty mapping where there is nothing.
        """


class WeightedSum(Reward):
    """A weighted sum of rewards, each of which can be logged apart.

    Args:
        rewards: at least one, their names all different.
        weights: one a reward, finite; all 1 when None.

    Raises:
        ValueError: if there is no reward, two share a name, or the weights do not suit.
    """

    name = "sum"

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        self.rewards = list(rewards)
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(weight) for weight in weights]
        names = [reward.name for reward in self.rewards]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"rewards ({names}) must hold one or more, each with a name of its own.")
        if len(self.weights) != len(names) or not np.isfinite(self.weights).all():
            raise ValueError(f"weights ({weights}) must hold one finite number for each of the rewards {names}.")
        ends = [sorted((w * r.range[0], w * r.range[1])) for w, r in zip(self.weights, self.rewards, strict=True) if w]
        self.range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    def prepare(self) -> None:
        """Prepares every reward."""
        for reward in self.rewards:
            reward.prepare()

    def scores(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> dict[str, Scores]:
        """The scores (B,) of every reward by its name, without weights.

        Raises:
            ValueError: if a reward does not give one score an image.
        """
        scores = {}
        for reward in self.rewards:
            given = np.asarray(reward(images, prompts, metadata), dtype=np.float64)
            if given.shape != (len(images),):
                raise ValueError(f"reward {reward.name!r} gave scores {given.shape} for {len(images)} images.")
            scores[reward.name] = given
        return scores

    def total(self, scores: Mapping[str, Scores]) -> Scores:
        """The weighted sum (B,) of what `scores` returned."""
        parts = [w * scores[reward.name] for w, reward in zip(self.weights, self.rewards, strict=True)]
        return np.sum(parts, axis=0)

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """The weighted sum (B,)."""
        return self.total(self.scores(images, prompts, metadata))


def check_form(form: str, forms: Sequence[str]) -> None:
    """Raises a ValueError unless `form` is one of `forms`."""
    if form not in forms:
        raise ValueError(f"form ({form!r}) must be one of {tuple(forms)}.")
