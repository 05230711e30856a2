"""The reward of the shapes world: its exact verifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores, check_form
from blip3o.rewards.geneval_rules import FORMS, Form, Found
from blip3o.rewards.geneval_rules import judge as judge_by_rules
from blip3o.shapes import RELATIONS, Detection, World, detect, get_world, holds, verify
from blip3o.shapes import metadata as describe


class ShapesReward(Reward):
    """Whether a picture of the shapes world shows what its caption says.

    Args:
        world: a world, or the name of one.
        form: `strict` is what evaluation counts: 1 where everything holds exactly and there is nothing else, else 0.
            `official` and `soft` are GenEval's rules on what the verifier detects: at least the objects asked for, and
            the mean of a term for each number, colour and position. Both overlook what else is in the picture.
        name: under which it is logged; `shapes_FORM` when None.

    Raises:
        ValueError: if the world or the form is unknown.
    """

    def __init__(self, world: str | World = "shapes", form: Form = "strict", name: str | None = None) -> None:
        check_form(form, FORMS)
        self.world = get_world(world)
        self.form: Form = form
        self.name = name or f"shapes_{form}"

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1]; the captions say all, so `metadata` is not read.

        Raises:
            ValueError: if the images have another size than the world's, or a caption can not be read.
        """
        if self.form == "strict":
            return np.array([float(verdict.correct) for verdict in verify(images, prompts, self.world)])
        seen = detect(images, self.world)
        return np.array([self._by_rules(one.detections, p) for one, p in zip(seen, prompts, strict=True)])

    def _by_rules(self, detections: Sequence[Detection], caption: str) -> float:
        objects: dict[str, list[Found]] = {}
        for one in sorted(detections, key=lambda one: -one.score):
            box = (one.x - one.h, one.y - one.h, one.x + one.h, one.y + one.h)
            objects.setdefault(one.shape, []).append(Found(box, one.score, one.color))
        return judge_by_rules(objects, describe(caption, self.world), self.form, _relations).score


def _relations(first: Found, second: Found) -> set[str]:
    """The one relation of two objects: along the axis on which their centres differ more."""
    dx, dy = ((second.box[i] + second.box[i + 2] - first.box[i] - first.box[i + 2]) / 2 for i in (0, 1))
    return {name for name in RELATIONS if holds(name, dx, dy)}
