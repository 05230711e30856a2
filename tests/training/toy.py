"""Rewards that any model can earn, and short runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Callback, Trainer

from blip3o.data.shapes_prompts import ShapesPromptsDataModule
from blip3o.model import Blip3oNext
from blip3o.rewards.base import Reward
from blip3o.shapes import SHAPES_MINI, sample_scene
from blip3o.training.base import Optimization
from blip3o.training.flow_grpo import FlowGRPOModule
from blip3o.training.grpo import GRPOModule
from blip3o.training.history import History
from blip3o.training.policy_module import PolicyModule
from blip3o.training.quiet import quiet
from tests.tiny import tiny_model


class Brightness(Reward):
    """How bright a picture is."""

    name = "brightness"

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        assert len(images) == len(prompts) == len(metadata) and images.dtype == np.uint8
        return images.mean((1, 2, 3)) / 255


class FirstCaptions(Brightness):
    """Brightness for the first two captions of the stream of `ShapesPromptsDataModule(seed=1)`, the same for others."""

    name = "first_captions"

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        first = {sample_scene(SHAPES_MINI, 1, index).caption for index in (0, 1)}
        bright = super().__call__(images, prompts, metadata)
        return np.where([prompt in first for prompt in prompts], bright, 0.5)


class Scripted(Reward):
    """What a list says: at each call one score for all pictures, or one for each."""

    name = "scripted"

    def __init__(self, *scores: Any) -> None:
        self.scores = list(scores)

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        score = self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]
        return np.resize(np.asarray(score, dtype=np.float64), len(images))


def grpo(model: Blip3oNext | None = None, rewards: list[Reward] | None = None, **arguments: Any) -> GRPOModule:
    """Four images of a prompt, rendered in one step."""
    values: dict[str, Any] = {
        "optimization": Optimization(lr=1e-2, schedule="linear", warmup_steps=0),
        "num_generations": 4,
        "beta": None,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
    }
    return GRPOModule(model or tiny_model(), rewards or [Brightness()], **{**values, **arguments})


def flow_grpo(model: Blip3oNext | None = None, rewards: list[Reward] | None = None, **arguments: Any) -> FlowGRPOModule:
    """Four images of a prompt, drawn in four steps, of which three are random."""
    values: dict[str, Any] = {
        "optimization": Optimization(lr=1e-3, schedule="linear", warmup_steps=0),
        "num_generations": 4,
        "num_train_steps": 4,
        "beta": None,
        "guidance_scale": 1.0,
    }
    return FlowGRPOModule(model or tiny_model(), rewards or [Brightness()], **{**values, **arguments})


def prompts(batch_size: int = 2, **arguments: Any) -> ShapesPromptsDataModule:
    """Captions of 32-pixel scenes."""
    values = {"world": "shapes-mini", "batch_size": batch_size, "num_val": 4, "num_prompts": 1}
    return ShapesPromptsDataModule(**{**values, **arguments})


def fit(
    module: PolicyModule[Any], *, steps: int, callbacks: Sequence[Callback] = (), batch_size: int = 2, **arguments: Any
) -> History:
    """Trains and returns what every rollout logged."""
    history = History()
    values = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "max_steps": steps, **arguments}
    checkpoint = values.pop("ckpt_path", None)
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[history, *callbacks],
            **values,  # type: ignore[arg-type]
        )
        trainer.fit(module, datamodule=prompts(batch_size), ckpt_path=checkpoint)
    return history
