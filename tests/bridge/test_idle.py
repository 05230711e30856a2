"""IdleBridge: it holds an MLPBridge's weights, adds nothing and does not train."""

from __future__ import annotations

import torch

from blip3o.bridge import IdleBridge, MLPBridge
from blip3o.structures import ARStates, Conditioning


def test_it_holds_the_same_weights_and_adds_no_position() -> None:
    idle, used = IdleBridge(4, 6, depth=3), MLPBridge(4, 6, depth=3)
    idle.load_state_dict(used.state_dict())
    assert not any(p.requires_grad for p in idle.parameters())
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert idle(ARStates(states)).embeds.shape == (2, 0, 6)
    condition = Conditioning(torch.ones(2, 3, 6))
    assert torch.equal(condition.followed_by(idle(ARStates(states)).embeds).embeds, condition.embeds)
    assert idle.config()["init_args"]["depth"] == 3
