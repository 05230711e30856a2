"""The model that a run starts from: built from parts, or named."""

from __future__ import annotations

import torch

from blip3o.checkpoints import CONFIG_NAME, describe_model, load_all_weights
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline, GenerationDefaults, find_model


def start_from(
    model: str | Blip3oNext, weights: dict[str, str | None] | None = None
) -> tuple[Blip3oNext, GenerationDefaults]:
    """The model with the weights it starts from, and how it generates where a call says nothing.

    Args:
        model: a composed model; or a bundled name, a folder or a hub id. On the meta device a named one has its shapes
            alone.
        weights: what to start parts from, by name, as for `JointModule`.

    Raises:
        ValueError: if there is no model of that name, or `weights` do not fit.
    """
    defaults = GenerationDefaults()
    if isinstance(model, str):
        if torch.get_default_device().type == "meta":
            folder = find_model(model)
            model, generation = describe_model(folder)
            defaults = GenerationDefaults.stored(generation, folder / CONFIG_NAME)
        else:
            pipe = Blip3oPipeline.from_pretrained(model)
            model, defaults = pipe.model, pipe.defaults
    load_all_weights(model, weights)
    return model, defaults
