"""Models of human preference: ImageReward, PickScore and HPSv2.1."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from blip3o.loading import check_loading_info, resolve_folder
from blip3o.rewards.base import Images, Metadata, Reward, Scores


class PreferenceReward(Reward):
    """A model that says how well people would like a picture for its prompt; subclasses load and call one.

    Args:
        name_or_path: folder or hub id of the model.
        name: under which it is logged.
        device: where it runs; the GPU when None, where there is one.
        batch_size: pictures that it sees at a time.

    Raises:
        ValueError: if the batch size is below 1.
    """

    def __init__(self, name_or_path: str, name: str, device: str | None, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        self.name_or_path = name_or_path
        self.name = name
        self.batch_size = batch_size
        self._device = device

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._device or ("cuda" if torch.cuda.is_available() else "cpu")

    @abstractmethod
    def _load(self) -> Any:
        """The model, on the device and for inference."""

    @abstractmethod
    def _score(self, images: Images, prompts: list[str]) -> Tensor:
        """Scores (B,) or (B, 1) of a batch, images (B, H, W, 3) uint8."""

    @cached_property
    def model(self) -> Any:
        """What scores."""
        return self._load()

    def prepare(self) -> None:
        """Loads the model; raises what loading raises."""
        _ = self.model

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,)."""
        self.prepare()
        scores = [np.zeros(0)]
        for first in range(0, len(images), self.batch_size):
            some = slice(first, first + self.batch_size)
            given = self._score(images[some], list(prompts[some]))
            scores.append(given.reshape(len(images[some])).double().cpu().numpy())
        return np.concatenate(scores)


class PickScore(PreferenceReward):
    """PickScore (Kirstain et al., 2023): 100 times the cosine of a CLIP fine-tuned on choices; mostly 18 to 24.

    It runs on transformers alone.

    Args:
        name_or_path: folder or hub id of the CLIP model.
        processor: folder or hub id of its tokenizer and of how pictures are prepared; the model's own when None.
        name: under which it is logged.
        device: where it runs; the GPU when None, where there is one.
        batch_size: pictures that it sees at a time.

    Raises:
        ValueError: if the batch size is below 1; when it is made ready, if there is no such model.
    """

    range = (-100.0, 100.0)

    def __init__(
        self,
        name_or_path: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        name: str = "pickscore",
        device: str | None = None,
        batch_size: int = 16,
    ) -> None:
        super().__init__(name_or_path, name, device, batch_size)
        self.processor = processor

    def _load(self) -> Any:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        wanted = ["*.json", "*.safetensors", "*.txt"]
        folder = resolve_folder(self.name_or_path, "name_or_path", wanted=wanted)
        other = folder
        if self.processor is not None:
            other = resolve_folder(self.processor, "processor", wanted=["*.json", "*.txt"])
        self._tokenizer: Any = AutoTokenizer.from_pretrained(other)
        self._pictures: Any = CLIPImageProcessor.from_pretrained(other)
        model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
        check_loading_info(info, self.name_or_path)
        return model.eval().requires_grad_(False).to(self.device)

    def _score(self, images: Images, prompts: list[str]) -> Tensor:
        limit = self.model.config.text_config.max_position_embeddings
        texts = self._tokenizer(prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        pixels = self._pictures(images=list(images), return_tensors="pt")["pixel_values"]
        image = _pooled(self.model.get_image_features(pixel_values=pixels.to(self.device)))
        text = _pooled(self.model.get_text_features(**texts.to(self.device)))
        cosine = (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
        return self.model.logit_scale.exp() * cosine


def _pooled(output: Any) -> Tensor:
    """The projected features, which newer versions of transformers wrap."""
    return output if isinstance(output, Tensor) else output.pooler_output


class ImscoreReward(PreferenceReward):
    """A model of the package `imscore` (the extra `blip3o[preference]`), with its `score(pixels, prompts)`."""

    module: str
    model_class: str

    def _load(self) -> Any:
        try:
            cls = getattr(import_module(self.module), self.model_class)
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__} needs {error.name or 'imscore'}; install the extra with "
                "`pip install 'blip3o[preference]'`."
            ) from error
        folder = resolve_folder(self.name_or_path, "name_or_path", wanted=["*.json", "*.safetensors"])
        with _as_transformers_4():
            try:
                model = cls.from_pretrained(str(folder), strict=True)
            except (OSError, ValueError, RuntimeError) as error:
                told = " ".join(str(error).split())
                raise ValueError(f"name_or_path ({self.name_or_path}) can not be loaded: {told}") from error
        return model.eval().requires_grad_(False).to(self.device)

    def _score(self, images: Images, prompts: list[str]) -> Tensor:
        pixels = rearrange(torch.from_numpy(images), "b h w c -> b c h w").to(self.device).float() / 255
        scores: Tensor = self.model.score(pixels, prompts)
        return scores


class ImageReward(ImscoreReward):
    """ImageReward (Xu et al., 2023): a BLIP trained on rankings, normalised; mostly -2 to 2, without limits.

    The text tokenizer of `bert-base-uncased` is fetched beside it.

    Args:
        name_or_path: folder or hub id of imscore's weights.
        name: under which it is logged.
        device: where it runs; the GPU when None, where there is one.
        batch_size: pictures that it sees at a time.

    Raises:
        ValueError: if the batch size is below 1; when it is made ready, if the weights can not be loaded.
        ImportError: when it is made ready, without imscore.
    """

    range = (-math.inf, math.inf)
    module = "imscore.imreward.model"
    model_class = "ImageReward"

    def __init__(
        self,
        name_or_path: str = "RE-N-Y/ImageReward",
        name: str = "imagereward",
        device: str | None = None,
        batch_size: int = 16,
    ) -> None:
        super().__init__(name_or_path, name, device, batch_size)


class HPSv2(ImscoreReward):
    """HPSv2.1 (Wu et al., 2023): the cosine of an OpenCLIP fine-tuned on choices; mostly 0.2 to 0.35.

    Building it fetches the weights of the OpenCLIP that it was made from as well.

    Args:
        name_or_path: folder or hub id of imscore's weights.
        name: under which it is logged.
        device: where it runs; the GPU when None, where there is one.
        batch_size: pictures that it sees at a time.

    Raises:
        ValueError: if the batch size is below 1; when it is made ready, if the weights can not be loaded.
        ImportError: when it is made ready, without imscore.
    """

    range = (-1.0, 1.0)
    module = "imscore.hps.model"
    model_class = "HPSv2"

    def __init__(
        self,
        name_or_path: str = "RE-N-Y/hpsv21",
        name: str = "hpsv2",
        device: str | None = None,
        batch_size: int = 16,
    ) -> None:
        super().__init__(name_or_path, name, device, batch_size)


@contextmanager
def _as_transformers_4() -> Iterator[None]:
    """Within the block, tokenizers have the one property of transformers 4 that imscore 0.0.11 asks for."""
    from transformers import PreTrainedTokenizerBase

    name = "additional_special_tokens_ids"
    if hasattr(PreTrainedTokenizerBase, name):
        yield
        return
    setattr(PreTrainedTokenizerBase, name, property(lambda one: one.convert_tokens_to_ids(one.extra_special_tokens)))
    try:
        yield
    finally:
        delattr(PreTrainedTokenizerBase, name)
