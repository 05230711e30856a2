"""A reward as a metric of `blip3o ablate`: what pictures of held-out captions earn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3o.ablation.metrics import Metric, PromptResult, Scores
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.objectives import FlowMatching
from blip3o.diffusion.sde import FlowMatchSDE
from blip3o.evaluation.shapes import check_size
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.rewards.spec import build_reward
from blip3o.shapes import evaluation_captions, get_world, metadata


class RewardMetric(Metric):
    """The mean reward of one picture for each held-out caption of the shapes world: overall, and of every tag.

    Args:
        reward: `class_path` of a `blip3o.rewards.Reward`, and its `init_args`.
        num_captions: held-out captions.
        seed: of captions and pictures, which are those of `ShapesMetric`.
        batch_size: pictures generated at a time.
        world: of the captions.
        settings: arguments of generation; the run's own where left out.
        noise_level: of `FlowMatchSDE`, in place of the head's own sampler: what Flow-GRPO rewards is drawn so.

    Raises:
        ValueError: if there is no such reward or world, no caption is asked for, or the noise level is out of range.
    """

    def __init__(
        self,
        reward: dict[str, Any],
        num_captions: int = 120,
        seed: int = 0,
        batch_size: int = 32,
        world: str = "shapes",
        settings: dict[str, Any] | None = None,
        noise_level: float | None = None,
    ) -> None:
        self.reward = build_reward(reward)
        self.sampler = None if noise_level is None else FlowMatchSDE(noise_level=noise_level)
        self.world = get_world(world)
        self.seed = seed
        self.batch_size = batch_size
        self.settings = settings or {}
        self._captions = evaluation_captions(self.world, num_captions, seed)

    def check(self, model: Blip3oNext) -> None:
        """Refuses a head that has no noise level, where one is asked for."""
        head = model.diffusion
        if self.sampler is None:
            return
        if not (isinstance(head, FlowHead) and isinstance(head.objective, FlowMatching)):
            raise ValueError(
                f"noise_level ({self.sampler.noise_level}) needs a FlowHead over FlowMatching, but the head is a "
                f"{type(head).__name__}; leave it out."
            )

    def measure(self, pipe: Blip3oPipeline, folder: Path) -> Scores:
        """Writes nothing.

        Raises:
            ValueError: if the pictures have another size than the world's, or the reward could judge none of a tag.
        """
        self.reward.prepare()
        earned: list[float] = []
        about = [metadata(caption, self.world) for caption in self._captions]
        for start in range(0, len(self._captions), self.batch_size):
            some = slice(start, start + self.batch_size)
            captions = self._captions[some]
            generators = [
                torch.Generator().manual_seed(self.seed * 1_000_000 + start + i) for i in range(len(captions))
            ]
            with self._sampler_of(pipe.model):
                images = pipe(captions, generator=generators, **self.settings).images
            check_size(images[0], self.world)
            earned += self.reward(np.stack([np.asarray(image) for image in images]), captions, about[some]).tolist()
        rows = [
            PromptResult(f"{index:05d} {caption}", one["tag"], value)
            for index, (caption, one, value) in enumerate(zip(self._captions, about, earned, strict=True))
            if not math.isnan(value)
        ]
        by_tag = {
            tag: [row.value for row in rows if row.tag == tag] for tag in dict.fromkeys(one["tag"] for one in about)
        }
        if empty := [tag for tag, values in by_tag.items() if not values]:
            raise ValueError(f"{self.reward.name} could judge no picture of {empty}; ask for more captions.")
        means = {tag: float(np.mean(values)) for tag, values in by_tag.items()}
        return Scores({"overall": float(np.mean(list(means.values()))), **means}, rows)

    @contextmanager
    def _sampler_of(self, model: Blip3oNext) -> Iterator[None]:
        """Draws with the metric's sampler, where it has one."""
        if self.sampler is None:
            yield
            return
        assert isinstance(model.diffusion, FlowHead), "checked before anything was trained"
        own, model.diffusion.sampler = model.diffusion.sampler, self.sampler
        try:
            yield
        finally:
            model.diffusion.sampler = own
