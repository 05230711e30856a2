"""A tiny model that takes references, and a pipeline that edits as well as it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip3o.ar import CausalLM
from blip3o.bridge import MLPBridge
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline, GenerationDefaults
from blip3o.prompts import PromptTemplate
from blip3o.shapes import ShapesEdit, World, render
from tests.tiny import WORDS, perturbed, seeded, tiny_ar_config, tiny_dit, tiny_head, tiny_tokenizer

EDIT_WORDS = (
    *("make", "the", "background", "black", "white", "remove", "add", "replace", "with"),
    *("keep", "image", "unchanged", "put", "shape", "first", "into", "second"),
)
TEMPLATE = PromptTemplate(
    "{caption}", edit="{instruction}", before_references="", after_references="", system=None, chat=False
)


def tiny_edit_model(**config: Any) -> Blip3oNext:
    """As `tiny_model`, with the words of instructions; references reach it as tokens and as latents."""
    with seeded(0):
        ar = CausalLM(tiny_ar_config(**config), [*WORDS, *EDIT_WORDS])
        head = tiny_head(tiny_dit(cond_grid=None))
        model = Blip3oNext(tiny_tokenizer(), ar, MLPBridge, head, TEMPLATE, reference_latents=MLPBridge)
    perturbed(model.ar)
    return model.eval()


def tiny_edit_pipe(**config: Any) -> Blip3oPipeline:
    """Two steps unless a call says more."""
    return Blip3oPipeline(tiny_edit_model(**config), GenerationDefaults(num_inference_steps=2, top_k=0))


class Oracle(Blip3oPipeline):
    """Gives the target of the edits that it knows, or the picture as it was, by the toss of each picture's generator.

    Args:
        edits: what it knows.
        world: where they come from.
        share: of edits that it makes.
    """

    def __init__(self, edits: Sequence[ShapesEdit], world: World, share: float = 0.5) -> None:
        super().__init__(tiny_edit_model())
        self.world, self.share = world, share
        self.known = {(one.instruction, *(render(s, world).tobytes() for s in one.references)): one for one in edits}

    def __call__(  # type: ignore[override]
        self, prompt: list[str], *, image: list[list[Image.Image]], generator: list[torch.Generator], **settings: Any
    ) -> SimpleNamespace:
        drawn = []
        for one, references, toss in zip(prompt, image, generator, strict=True):
            edit = self.known[(one, *(np.asarray(picture).tobytes() for picture in references))]
            right = float(torch.rand(1, generator=toss)) < self.share
            drawn.append(Image.fromarray(render(edit.target if right else edit.source, self.world)))
        return SimpleNamespace(images=drawn)
