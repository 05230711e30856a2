"""The reward of the text task: what the reader of the font makes of a picture against its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from blip3o.rewards.base import Images, Metadata, Reward, Scores, check_form
from blip3o.shapes.text import TextWorld, get_text_world, parse_text_caption
from blip3o.shapes.text_reader import read_text, verify_text

TextForm = Literal["exact", "soft"]
FORMS = ("exact", "soft")


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance: letters to insert, drop or replace to make one text the other."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        above, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != other))
    return row[-1]


class ShapesTextReward(Reward):
    """Whether a picture shows the word that its caption names, in its colour.

    Args:
        world: a world of words, or the name of one.
        form: `exact` is 1 where word and colour are right and there is nothing else, else 0. `soft` is
            1 - min(d, len) / len, with d the edit distance from the word read to the word asked for and len the
            latter's length; half of that in another colour. It overlooks what else is in the picture.
        name: under which it is logged; `text_FORM` when None.

    Raises:
        ValueError: if the world or the form is unknown.
    """

    def __init__(self, world: str | TextWorld = "text", form: TextForm = "exact", name: str | None = None) -> None:
        check_form(form, FORMS)
        self.world = get_text_world(world)
        self.form: TextForm = form
        self.name = name or f"text_{form}"

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Metadata) -> Scores:
        """Scores (B,) in [0, 1]; the captions say all, so `metadata` is not read.

        Raises:
            ValueError: if the images have another size than the world's, or a caption can not be read.
        """
        if self.form == "exact":
            return np.array([float(verdict.correct) for verdict in verify_text(images, prompts, self.world)])
        specs = [parse_text_caption(caption, self.world) for caption in prompts]
        scores = []
        for seen, spec in zip(read_text(images, self.world), specs, strict=True):
            right = 1 - min(edit_distance(seen.word, spec.word), len(spec.word)) / len(spec.word)
            scores.append(right if seen.color == spec.color else right / 2)
        return np.array(scores)
