"""The GenEval reward: transformers' Mask2Former finds objects, CLIP names colours, GenEval's rules judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores, check_form
from blip3o.rewards.geneval_models import ColorClassifier, InstanceDetector, best_device
from blip3o.rewards.geneval_rules import FORMS, Form, Found, Outcome, judge, kept
from blip3o.rewards.geneval_selftest import check_pictures

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"


class GenEvalReward(Reward):
    """GenEval's score of pictures, with a detector of transformers in the place of the benchmark's own.

    Scores are to be called "GenEval (HF detector)": they have not been compared with those of the original detector.
    The metadata of every prompt is a line of GenEval's `evaluation_metadata.jsonl` (`tag`, `include`, `exclude`).

    Args:
        detector: folder or hub id of a Mask2Former for the 80 classes of COCO.
        clip: folder or hub id of a CLIP model.
        form: `official` (at least the objects asked for), `strict` (exactly those), or `soft` (mean of terms).
        device: where both run; the GPU when None, where there is one.
        batch_size: pictures that the detector sees at a time.
        self_test: whether to check on two bundled pictures that both models see what is there.
        name: under which it is logged; `geneval_FORM` when None.

    Raises:
        ValueError: on an unknown form or a batch size below 1.
    """

    def __init__(
        self,
        detector: str = DETECTOR,
        clip: str = CLIP,
        form: Form = "official",
        device: str | None = None,
        batch_size: int = 4,
        self_test: bool = True,
        name: str | None = None,
    ) -> None:
        check_form(form, FORMS)
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        self.form: Form = form
        self.name = name or f"geneval_{form}"
        self.batch_size = batch_size
        self.self_test = self_test
        self._sources = (detector, clip)
        self._device = device

    @cached_property
    def detector(self) -> InstanceDetector:
        """Finds objects and their masks."""
        return InstanceDetector(self._sources[0], self._device or best_device())

    @cached_property
    def colors(self) -> ColorClassifier:
        """Names the colours of objects."""
        return ColorClassifier(self._sources[1], self._device or best_device())

    def prepare(self) -> None:
        """Loads both models and tries them on the two pictures.

        Raises:
            ValueError: if one can not be found, does not suit, or fails the self-test.
        """
        _ = self.detector, self.colors
        if self.self_test:
            check_pictures(self, "detector {} and clip {}".format(*self._sources))

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1].

        Raises:
            ValueError: if the metadata of a prompt does not say what the picture includes.
        """
        return np.array([outcome.score for outcome in self.outcomes(images, metadata)])

    def outcomes(self, images: Images, metadata: Metadata) -> list[Outcome]:
        """What GenEval's rules say of each picture."""
        outcomes = []
        for first in range(0, len(images), self.batch_size):
            some = slice(first, first + self.batch_size)
            batch = images[some]
            for image, seen, line in zip(batch, self.detector(batch), metadata[some], strict=True):
                outcomes.append(judge(self._objects(image, seen, line), line, self.form))
        return outcomes

    def _objects(
        self, image: np.ndarray, seen: Mapping[str, Sequence[tuple[Found, np.ndarray]]], line: Mapping[str, Any]
    ) -> dict[str, list[Found]]:
        """The detections that count, with their colours where the prompt asks for one."""
        tag = line.get("tag", "")
        colored = {wanted["class"] for wanted in line.get("include", ()) if "color" in wanted}
        objects = {}
        for name, found in seen.items():
            masks = {id(one): mask for one, mask in found}
            objects[name] = kept([one for one, _ in found], tag)
            if name in colored:
                objects[name] = self.colors(image, name, [(one, masks[id(one)]) for one in objects[name]])
        return objects
