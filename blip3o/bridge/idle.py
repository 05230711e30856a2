"""Weights of a projection that a checkpoint carries and does not use."""

from __future__ import annotations

import math

from blip3o.bridge.mlp import MLPBridge
from blip3o.structures import ARStates, Conditioning


class IdleBridge(MLPBridge):
    """An `MLPBridge` that adds no position to the condition and does not train.

    Released editing checkpoints that read the reference in noise space alone (`only_use_und_image_vae_as_noise`) hold
    the cross-attention projection all the same; kept here, it is saved and exported with the rest. It is of use as
    `reference_latents` alone.

    Args:
        in_features: width of the states.
        out_features: condition width of the diffusion head.
        depth: number of linear layers.
        norm_gain: starting value of the norm's gain.
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
        super().__init__(in_features, out_features, depth=depth, norm_gain=norm_gain, eps=eps)
        self.requires_grad_(False)

    def num_positions(self, num_states: int | None) -> int:
        """None, whatever is read."""
        return 0

    def forward(self, states: ARStates) -> Conditioning:
        """No position: embeds (B, 0, out_features)."""
        return Conditioning(states.hidden.new_zeros(len(states.hidden), 0, self.out_features))
