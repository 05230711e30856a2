"""The published bridge: a perceptron at every position, then an RMS norm."""

from __future__ import annotations

from torch import nn

from blip3o.bridge.base import Bridge, Reads
from blip3o.bridge.layers import NORM_GAIN, condition_norm
from blip3o.structures import ARStates, Conditioning


class MLPBridge(Bridge):
    """Linear, GELU(tanh), Linear, RMSNorm, as in BLIP3o-NEXT (released code, `diffusion_connector`).

    Args:
        in_features: width of the states.
        out_features: condition width of the diffusion head.
        depth: number of linear layers, with a GELU between any two.
        norm_gain: starting value of the norm's gain; the published one is sqrt(5.5).
        eps: the norm's epsilon.
        reads: what it reads, see `Bridge`.
        num_queries: number of learned queries, where it reads those.
        ar_layers: layers of the AR model that it mixes, see `Bridge`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 2,
        norm_gain: float = NORM_GAIN,
        eps: float = 1e-5,
        reads: Reads = "image_tokens",
        num_queries: int | None = None,
        ar_layers: list[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, reads=reads, num_queries=num_queries, ar_layers=ar_layers)
        if depth < 1:
            raise ValueError(f"depth ({depth}) must be at least 1.")
        layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
        for _ in range(depth - 1):
            layers += [nn.GELU(approximate="tanh"), nn.Linear(out_features, out_features)]
        self.layers = nn.Sequential(*layers, condition_norm(out_features, norm_gain, eps))

    def forward(self, states: ARStates) -> Conditioning:
        """One condition position for every position of the states."""
        first, *others = self.layers
        x = self.placed(first(self.fused(states)))
        for layer in others:
            x = layer(x)
        return Conditioning(x, states.mask)
