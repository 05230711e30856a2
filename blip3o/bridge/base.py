"""The contract of the bridge family."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from blip3o.part import Part
from blip3o.structures import ARStates, Conditioning

Reads = Literal["image_tokens", "queries", "prompt"]


class Bridge(Part):
    """Turns what the AR model knows into what the diffusion head is conditioned on.

    Subclasses take `in_features` (the AR's hidden size) and `out_features` (the head's condition width) first; a
    model calls them with both, so that neither is stated twice.

    Attributes:
        reads: what the bridge needs from the AR: `image_tokens`, the states at the scale token and the image tokens;
            `queries`, those at learned queries; `prompt`, those at the caption. A model refuses what it does not give.
    """

    reads: Reads = "image_tokens"

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def forward(self, states: ARStates) -> Conditioning:
        """States with hidden (B, L, in_features) to embeds (B, L', out_features) and their mask (B, L')."""
