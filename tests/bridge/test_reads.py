"""What a bridge reads is apart from how it transforms it: each kind is offered by each bridge, under the contract."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from blip3o.bridge import Bridge, MLPBridge, PerceiverBridge, TransformerBridge
from blip3o.bridge.layers import LayerMix, sinusoids
from blip3o.structures import ARStates
from tests.bridge.contract import IN, OUT, BridgeContract
from tests.tiny import perturbed, seeded

SMALL: dict[type[Bridge], dict[str, Any]] = {
    MLPBridge: {},
    TransformerBridge: {"depth": 1, "num_heads": 2},
    PerceiverBridge: {"depth": 1, "num_heads": 2, "num_latents": 3},
}
KINDS = list(SMALL)


def small(kind: type[Bridge], **arguments: Any) -> Bridge:
    with seeded(0):
        return kind(IN, OUT, **SMALL[kind], **arguments)


@pytest.mark.parametrize("kind", KINDS)
class Kinds(BridgeContract):
    """The contract for every transformation; subclasses say what is read."""

    arguments: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _kind(self, kind: type[Bridge]) -> None:
        self.kind = kind

    def bridge(self) -> Bridge:
        return small(self.kind, reads=self.reads, **self.arguments)


class TestQueries(Kinds):
    reads = "queries"
    arguments: ClassVar = {"num_queries": 5}


class TestPrompt(Kinds):
    reads = "prompt"


class TestTokenEmbeds(Kinds):
    reads = "token_embeds"


class TestLayers(Kinds):
    arguments: ClassVar = {"ar_layers": [0, 2, -1]}


class TestLayersOfPrompts(Kinds):
    reads = "prompt"
    arguments: ClassVar = {"ar_layers": [-2, -1]}


@pytest.mark.parametrize("kind", KINDS)
def test_token_features_get_places_and_hidden_states_keep_their_own(kind: type[Bridge]) -> None:
    """Features of equal tokens are equal, so that a head without places would be given a bag of them."""
    tokens, hidden = (perturbed(small(kind, reads=reads)) for reads in ("token_embeds", "image_tokens"))
    states = ARStates(torch.randn(1, 4, IN, generator=torch.Generator().manual_seed(0)))
    turned = ARStates(states.hidden.flip(1))

    def content(bridge: Bridge, given: ARStates) -> torch.Tensor:
        return bridge(given).embeds.sum(1)  # the same whatever the order of the positions

    assert (content(tokens, states) - content(tokens, turned)).abs().max() > 1e-3
    torch.testing.assert_close(content(hidden, states), content(hidden, turned), rtol=0, atol=1e-4)


def test_sinusoids_tell_positions_apart_at_any_width() -> None:
    for width in (7, 16):
        places = sinusoids(30, width, torch.zeros(1))
        assert places.shape == (30, width) and places.abs().max() <= 1
        assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.05
    assert sinusoids(3, 8, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_mix_starts_even_whatever_the_layers_sizes_and_can_choose_one() -> None:
    mix = LayerMix(3)
    layers = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    grown = layers * torch.tensor([0.1, 1.0, 100.0])[:, None, None]
    unit = layers / layers.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(mix(grown), unit.mean(1), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        mix.weights[1] = 50.0
    torch.testing.assert_close(mix(grown), unit[:, 1], rtol=1e-3, atol=1e-3)


def test_mixing_needs_the_layers() -> None:
    with pytest.raises(ValueError, match=r"states.layers \(None\) must hold the layers \(1, 2\)"):
        small(MLPBridge, ar_layers=[1, 2])(ARStates(torch.zeros(1, 2, IN)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reads": "minds"}, r"reads \('minds'\) must be one of"),
        ({"reads": "queries"}, r"num_queries \(None\) must be at least 1"),
        ({"reads": "queries", "num_queries": 0}, r"num_queries \(0\) must be at least 1"),
        ({"reads": "prompt", "num_queries": 4}, r"num_queries \(4\) needs reads='queries', not 'prompt'"),
        ({"reads": "token_embeds", "ar_layers": [1]}, r"ar_layers \(\[1\]\) are of hidden states"),
    ],
)
def test_what_does_not_go_together_is_refused(kind: type[Bridge], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind, **arguments)
