"""A reward as a metric: means by tag over held-out captions, and rewards that are refused before anything runs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oNext
from blip3o.ablation.metrics import build_metric
from blip3o.bridge import MLPBridge
from blip3o.diffusion import TokenDecoderHead
from blip3o.diffusion.sde import FlowMatchSDE
from blip3o.rewards import Reward
from blip3o.rewards.base import Images, Metadata, Scores
from blip3o.shapes import SHAPES_MINI, TAGS, evaluation_captions, render, scene_for_caption
from tests.tiny import PLAIN, tiny_ar, tiny_model, tiny_tokenizer

CLASS = "blip3o.ablation.reward_metric.RewardMetric"


class Draws:
    """In place of a pipeline: the exact scene of a caption, and it remembers what it was asked for."""

    def __init__(self, model: Any = None) -> None:
        self.model = model
        self.samplers: list[Any] = []
        self.asked: list[tuple[list[str], list[int], dict[str, Any]]] = []

    def __call__(self, captions: list[str], generator: list[torch.Generator], **settings: Any) -> SimpleNamespace:
        if self.model is not None:
            self.samplers.append(self.model.diffusion.sampler)
        self.asked.append((captions, [one.initial_seed() for one in generator], settings))
        scenes = [scene_for_caption(SHAPES_MINI, caption, np.random.default_rng(0)) for caption in captions]
        return SimpleNamespace(images=[Image.fromarray(render(scene, SHAPES_MINI)) for scene in scenes])


class Fails(Draws):
    """A pipeline that breaks."""

    def __call__(self, captions: list[str], generator: list[torch.Generator], **settings: Any) -> SimpleNamespace:
        raise RuntimeError("no picture")


class LengthReward(Reward):
    """Words of a prompt; it can not judge what is on the `left`."""

    name = "length"

    def __call__(self, images: Images, prompts: Any, metadata: Metadata) -> Scores:
        assert [one["prompt"] for one in metadata] == list(prompts)
        return np.array([math.nan if "left" in one else float(len(one.split())) for one in prompts])


def metric(**changes: Any) -> Any:
    arguments = {"reward": {"class_path": f"{__name__}.LengthReward"}, "num_captions": 12, "world": "shapes-mini"}
    return build_metric({"class_path": CLASS, "init_args": arguments | changes})


def test_scores_are_means_of_tags_over_what_could_be_judged(tmp_path: Path) -> None:
    pipe = Draws()
    scores = metric(seed=3, batch_size=5, settings={"num_inference_steps": 2}).measure(pipe, tmp_path)
    captions = evaluation_captions(SHAPES_MINI, 12, 3)
    assert [caption for asked, _, _ in pipe.asked for caption in asked] == captions
    assert [seed for _, seeds, _ in pipe.asked for seed in seeds] == [3_000_000 + i for i in range(12)]
    assert all(settings == {"num_inference_steps": 2} for _, _, settings in pipe.asked)
    assert len(scores.prompts) == sum("left" not in caption for caption in captions)
    tags = [tag for tag in TAGS if tag in scores.values]
    assert set(scores.values) == {"overall", *tags}
    assert scores.values["overall"] == pytest.approx(np.mean([scores.values[tag] for tag in tags]))
    for tag in tags:
        own = [row.value for row in scores.prompts if row.tag == tag]
        assert scores.values[tag] == pytest.approx(np.mean(own))


def test_exact_scenes_earn_all_of_the_verifier(tmp_path: Path) -> None:
    reward = {"class_path": "blip3o.rewards.ShapesReward", "init_args": {"world": "shapes-mini"}}
    assert metric(reward=reward).measure(Draws(), tmp_path).values["overall"] == 1.0


def test_unknown_rewards_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reward \(.*Nothing.*\) can not be built"):
        metric(reward={"class_path": "blip3o.rewards.Nothing"})
    with pytest.raises(ValueError, match="must hold a class_path"):
        metric(reward={"name": "sharp"})
    with pytest.raises(ValueError, match="is not a world"):
        metric(world="moon")
    with pytest.raises(ValueError, match=r"num_captions \(0\)"):
        metric(num_captions=0)


def test_a_noise_level_draws_as_flow_grpo_does_and_leaves_the_head_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    own, noisy = model.diffusion.sampler, metric(noise_level=0.7)
    noisy.check(model)
    pipe = Draws(model)
    noisy.measure(pipe, tmp_path)
    assert all(type(one) is FlowMatchSDE and one.noise_level == 0.7 for one in pipe.samplers)
    assert model.diffusion.sampler is own

    with pytest.raises(RuntimeError, match="no picture"):
        noisy.measure(Fails(model), tmp_path)
    assert model.diffusion.sampler is own


def test_a_noise_level_is_refused_where_a_head_has_none() -> None:
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, TokenDecoderHead(image_size=32), PLAIN)
    metric().check(model)
    with pytest.raises(ValueError, match=r"noise_level \(0.7\) needs a FlowHead .* is a TokenDecoderHead"):
        metric(noise_level=0.7).check(model)
    with pytest.raises(ValueError, match=r"noise_level \(-1\)"):
        metric(noise_level=-1)
