"""PerceiverBridge: the contract, and a condition of one length whatever is read."""

from __future__ import annotations

import pytest
import torch

from blip3o.bridge import PerceiverBridge
from blip3o.structures import ARStates
from tests.bridge.contract import IN, OUT, BridgeContract
from tests.tiny import perturbed, seeded


class TestFewerLatents(BridgeContract):
    def bridge(self) -> PerceiverBridge:
        with seeded(0):
            return PerceiverBridge(IN, OUT, num_latents=3, num_heads=2)


class TestMoreLatentsAtAnotherWidth(BridgeContract):
    def bridge(self) -> PerceiverBridge:
        with seeded(0):
            return PerceiverBridge(IN, OUT, num_latents=8, depth=1, num_heads=4, width=16)


def test_any_number_of_states_gives_as_many_positions_all_different() -> None:
    bridge = perturbed(TestFewerLatents().bridge())
    for count in (1, 2, 9):
        embeds = bridge(ARStates(torch.randn(2, count, IN, generator=torch.Generator().manual_seed(count)))).embeds
        assert embeds.shape == (2, 3, OUT) and bridge.num_positions(count) == 3
        assert torch.cdist(embeds[0], embeds[0]).fill_diagonal_(9).min() > 1e-2
    assert bridge.num_positions(None) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_latents": 0, "num_heads": 2}, r"num_latents \(0\) must be at least 1"),
        ({"depth": 0}, r"depth \(0\) must be at least 1"),
        ({"num_heads": 5}, rf"num_heads \(5\) must divide width \({IN}\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerceiverBridge(IN, OUT, **arguments)
