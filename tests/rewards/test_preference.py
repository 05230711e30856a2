"""PickScore on a tiny CLIP; ImageReward and HPSv2 on a stand-in for imscore, whose weights can not be had here."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from blip3o.rewards.preference import HPSv2, ImageReward, ImscoreReward, PickScore
from tests.rewards.judges import write_judges

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)
PROMPTS = [f"a photo of {number} cats" for number in range(5)]
METADATA: list[dict[str, Any]] = [{}] * 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_judges(tmp_path_factory.mktemp("judges"))[1]


def test_pickscore_is_the_logit_that_clip_gives_a_picture_and_its_own_prompt(clip: str) -> None:
    reward = PickScore(clip, processor=None, device="cpu", batch_size=2)
    scores = reward(IMAGES, PROMPTS, METADATA)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), PreTrainedTokenizerFast.from_pretrained(clip)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(clip)(images=list(IMAGES), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, **pixels).logits_per_image.diagonal()
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4)
    assert scores.std() > 0 and reward.range[0] < scores.min() < scores.max() < reward.range[1]
    assert reward(IMAGES[:0], [], []).shape == (0,)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_a_missing_model_is_named(clip: str) -> None:
    with pytest.raises(ValueError, match=r"name_or_path \(/nowhere\) is unknown"):
        PickScore("/nowhere").prepare()
    with pytest.raises(ValueError, match=r"processor \(/nowhere\) is unknown"):
        PickScore(clip, processor="/nowhere").prepare()
    with pytest.raises(ValueError, match=r"batch_size \(0\)"):
        PickScore(batch_size=0)


class StandIn(nn.Module):
    """Called as imscore's models are: pixels (B, 3, H, W) in [0, 1], a list of prompts."""

    columns: tuple[int, ...] = ()

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.folder = folder
        self.batches: list[int] = []

    @classmethod
    def from_pretrained(cls, name: str, *, strict: bool = False) -> StandIn:
        assert strict, "missing weights must not pass in silence"
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, additional_special_tokens=["[ENC]"])
        assert tokenizer.additional_special_tokens_ids[0] == tokenizer.convert_tokens_to_ids("[ENC]")
        if Path(name).name == "damaged":
            raise RuntimeError("Missing key(s) in state_dict")
        return cls(name).train()

    def score(self, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert pixels.dtype == torch.float32 and pixels.shape[1] == 3 and not self.training
        assert pixels.min() >= 0 and pixels.max() <= 1 and len(prompts) == len(pixels)
        self.batches.append(len(pixels))
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return (self.weight * pixels.mean((1, 2, 3)) + lengths).reshape(-1, *self.columns)


KINDS: list[tuple[type[ImscoreReward], tuple[int, ...]]] = [(ImageReward, (1,)), (HPSv2, ())]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].__name__)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[ImscoreReward]:
    """A reward, and a stand-in for its module of imscore."""
    reward, columns = request.param
    module = ModuleType(reward.module)
    setattr(module, reward.model_class, type(reward.model_class, (StandIn,), {"columns": columns}))
    for name in ("imscore", reward.module.rpartition(".")[0]):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, reward.module, module)
    return reward


def test_the_wrapper_around_a_stand_in_for_imscore_gives_its_scores(kind: Any, clip: str) -> None:
    reward = kind(clip, device="cpu", batch_size=2)
    assert reward.name in ("imagereward", "hpsv2")
    scores = reward(IMAGES, PROMPTS, METADATA)
    lengths = [len(prompt) for prompt in PROMPTS]
    np.testing.assert_allclose(scores, IMAGES.mean((1, 2, 3)) / 255 + lengths, rtol=1e-6)
    assert reward.model.batches == [2, 2, 1] and reward.model.folder == clip
    assert not reward.model.weight.requires_grad
    assert not hasattr(PreTrainedTokenizerFast, "additional_special_tokens_ids"), "lent while loading alone"


def test_the_wrapper_around_a_stand_in_for_imscore_says_why_weights_do_not_load(kind: Any, tmp_path: Path) -> None:
    write_judges(tmp_path)[1]
    (tmp_path / "clip").rename(tmp_path / "damaged")
    with pytest.raises(ValueError, match=r"name_or_path \(.*damaged\) can not be loaded: Missing key\(s\)"):
        kind(str(tmp_path / "damaged")).prepare()
    with pytest.raises(ValueError, match=r"name_or_path \(/nowhere\) is unknown"):
        kind("/nowhere").prepare()


@pytest.mark.parametrize("reward", [ImageReward, HPSv2])
def test_without_imscore_the_extra_is_named(reward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imscore", None)
    built = pickle.loads(pickle.dumps(reward()))  # building loads nothing, so a copy can go to a worker process
    with pytest.raises(ImportError, match=r"needs imscore.*pip install 'blip3o\[preference\]'"):
        built.prepare()
