"""Every bridge in a tiny model, for the tests of what surrounds them."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch

from blip3o.ar import Sampling
from blip3o.bridge import MLPBridge, PerceiverBridge, TransformerBridge
from blip3o.model import Blip3oNext
from blip3o.structures import ARStates
from tests.tiny import generators, tiny_images, tiny_model

CAPTIONS = ["a red circle", "two blue squares and a green triangle", "circles"]
GREEDY = Sampling(temperature=0.0)
TRANSFORMER = partial(TransformerBridge, depth=1, num_heads=2, mlp_ratio=2.0)
PERCEIVER = partial(PerceiverBridge, depth=1, num_heads=2, mlp_ratio=2.0, num_latents=6)
BRIDGES: dict[str, Any] = {
    "token states": MLPBridge,
    "learned queries": partial(TRANSFORMER, reads="queries", num_queries=5),
    "queries, perceptron": partial(MLPBridge, reads="queries", num_queries=5),
    "token embeddings": partial(MLPBridge, reads="token_embeds"),
    "prompt states": partial(MLPBridge, reads="prompt"),
    "layer fusion": partial(MLPBridge, ar_layers=[0, 1, -1]),
    "layer fusion of the prompt": partial(PERCEIVER, ar_layers=[1, 2], reads="prompt"),
    "transformer": TRANSFORMER,
    "perceiver": PERCEIVER,
}
WITHOUT_TOKENS = [name for name in BRIDGES if "queries" in name or "prompt" in name]
every_bridge = pytest.mark.parametrize("name", BRIDGES)


@cache
def shared(name: str) -> Blip3oNext:
    """A model that no test changes. The DiT takes any number of positions here."""
    return tiny_model(BRIDGES[name], cond_grid=None)


def losses(model: Blip3oNext, **arguments: Any) -> Any:
    """Losses of the captions, each row with a generator of its own."""
    return model.losses(tiny_images(3), CAPTIONS, generator=generators(3), **arguments)


@torch.no_grad()
def generated(model: Blip3oNext, captions: list[str] = CAPTIONS, first_seed: int = 0, **arguments: Any) -> Any:
    """What the captions give in two steps, each row with a generator of its own."""
    rows = generators(len(captions), first_seed)
    return model.generate(captions, num_inference_steps=2, generator=rows, **arguments)


def read_of(model: Blip3oNext) -> ARStates:
    """What the bridge is given of the captions in training."""
    given: list[ARStates] = []
    handle = model.bridge.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    losses(model)
    handle.remove()
    return given[0]
