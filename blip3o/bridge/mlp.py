"""The published bridge: a perceptron at every position, then an RMS norm."""

from __future__ import annotations

import math

from torch import nn

from blip3o.bridge.base import Bridge
from blip3o.structures import ARStates, Conditioning


class MLPBridge(Bridge):
    """Linear, GELU(tanh), Linear, RMSNorm, as in BLIP3o-NEXT (released code, `diffusion_connector`).

    Args:
        in_features: hidden size of the AR model.
        out_features: condition width of the diffusion head.
        depth: number of linear layers, with a GELU between any two.
        norm_gain: starting value of the norm's gain; the published one is sqrt(5.5).
        eps: the norm's epsilon.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 2,
        norm_gain: float = math.sqrt(5.5),
        eps: float = 1e-5,
    ) -> None:
        super().__init__(in_features, out_features)
        if depth < 1:
            raise ValueError(f"depth ({depth}) must be at least 1.")
        layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
        for _ in range(depth - 1):
            layers += [nn.GELU(approximate="tanh"), nn.Linear(out_features, out_features)]
        norm = nn.RMSNorm(out_features, eps=eps)
        nn.init.constant_(norm.weight, norm_gain)
        self.layers = nn.Sequential(*layers, norm)

    def forward(self, states: ARStates) -> Conditioning:
        """One condition position for every position of the states."""
        return Conditioning(self.layers(states.hidden), states.mask)
