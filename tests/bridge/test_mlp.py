"""MLPBridge: the contract, and the published layout and starting values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blip3o.bridge import MLPBridge
from blip3o.structures import ARStates
from tests.bridge.contract import IN, OUT, BridgeContract
from tests.tiny import seeded


class TestPublished(BridgeContract):
    def bridge(self) -> MLPBridge:
        with seeded(0):
            return MLPBridge(IN, OUT)


class TestDeep(BridgeContract):
    def bridge(self) -> MLPBridge:
        with seeded(0):
            return MLPBridge(IN, OUT, depth=3, norm_gain=1.0, eps=1e-6)


def test_the_defaults_are_the_published_ones() -> None:
    bridge = TestPublished().bridge()
    kinds = [type(layer) for layer in bridge.layers]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.RMSNorm]
    assert bridge.layers[1].approximate == "tanh"
    norm = bridge.layers[3]
    assert norm.eps == 1e-5
    assert torch.equal(norm.weight, torch.full((OUT,), math.sqrt(5.5)))
    # The published checkpoint's `diffusion_connector.{0,2,3}` have these numbers.
    assert {key.split(".")[1] for key in bridge.state_dict()} == {"0", "2", "3"}


def test_every_position_has_the_gain_as_its_root_mean_square() -> None:
    embeds = TestPublished().bridge()(TestPublished().states()).embeds
    torch.testing.assert_close(embeds.square().mean(-1), torch.full((3, 5), 5.5), rtol=1e-3, atol=0)


def test_null_states_give_what_the_biases_and_the_norm_make_of_zeros() -> None:
    bridge = TestPublished().bridge()
    states = TestPublished().states()
    first, second, norm = bridge.layers[0], bridge.layers[2], bridge.layers[3]
    out = F.linear(F.gelu(first.bias, approximate="tanh"), second.weight, second.bias)
    expected = out / (out.square().mean() + 1e-5).sqrt() * norm.weight
    actual = bridge(states.null()).embeds
    torch.testing.assert_close(actual, expected.expand(3, 5, OUT), rtol=1e-4, atol=1e-5)
    assert actual.abs().min() > 0
    dropped = bridge(states.drop(torch.tensor([True, False, False]))).embeds
    torch.testing.assert_close(dropped[0], actual[0])
    torch.testing.assert_close(dropped[1:], bridge(states).embeds[1:])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_the_linear_layers(depth: int) -> None:
    bridge = MLPBridge(IN, OUT, depth=depth)
    linears = [layer for layer in bridge.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(IN, OUT)] + [(OUT, OUT)] * (depth - 1)
    assert sum(isinstance(layer, nn.GELU) for layer in bridge.layers) == depth - 1
    states = ARStates(torch.zeros(1, 2, IN), torch.ones(1, 2, dtype=torch.bool))
    assert bridge(states).embeds.shape == (1, 2, OUT)


def test_a_bridge_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth \(0\)"):
        MLPBridge(IN, OUT, depth=0)
