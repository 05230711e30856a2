"""TransformerBridge: the contract, and that its positions see one another."""

from __future__ import annotations

import math

import pytest
import torch

from blip3o.bridge import TransformerBridge
from blip3o.structures import ARStates
from tests.bridge.contract import IN, OUT, BridgeContract
from tests.tiny import perturbed, seeded


class TestAtTheStatesWidth(BridgeContract):
    def bridge(self) -> TransformerBridge:
        with seeded(0):
            return TransformerBridge(IN, OUT, depth=2, num_heads=2)


class TestAtAnotherWidth(BridgeContract):
    def bridge(self) -> TransformerBridge:
        with seeded(0):
            return TransformerBridge(IN, OUT, depth=1, num_heads=4, width=16, mlp_ratio=2.0, norm_gain=1.0)


def test_a_position_sees_those_after_it() -> None:
    bridge = perturbed(TestAtTheStatesWidth().bridge())
    hidden = torch.randn(1, 5, IN, generator=torch.Generator().manual_seed(0))
    changed = hidden.clone()
    changed[:, 4] = 2.0
    difference = (bridge(ARStates(hidden)).embeds - bridge(ARStates(changed)).embeds).abs().amax(-1)
    assert (difference > 1e-4).all()


def test_layers_start_apart_and_the_condition_at_the_published_scale() -> None:
    bridge = TestAtTheStatesWidth().bridge()
    first, second = (block.linear1.weight for block in bridge.blocks)
    assert not torch.equal(first, second)
    embeds = bridge(ARStates(torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(0)))).embeds
    rms = embeds.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full((2, 5), math.sqrt(5.5)), rtol=1e-2, atol=0)


def test_a_width_of_its_own_costs_a_projection() -> None:
    same, other = TestAtTheStatesWidth().bridge(), TestAtAnotherWidth().bridge()
    assert not list(same.proj_in.parameters()) and other.proj_in.weight.shape == (16, IN)
    assert same.proj_out.in_features == IN and other.proj_out.in_features == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, r"depth \(0\) must be at least 1"),
        ({"num_heads": 5}, rf"num_heads \(5\) must divide width \({IN}\)"),
        ({"width": 30, "num_heads": 4}, r"num_heads \(4\) must divide width \(30\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerBridge(IN, OUT, **arguments)
