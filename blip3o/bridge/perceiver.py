"""A resampler: any number of states to a fixed number of condition positions."""

from __future__ import annotations

import torch
from einops import repeat
from torch import nn

from blip3o.bridge.base import Bridge, Reads
from blip3o.bridge.layers import NORM_GAIN, attention_layers, condition_norm, padding_mask
from blip3o.structures import ARStates, Conditioning


class PerceiverBridge(Bridge):
    """Learned latents that attend to one another and to the states, then a projection and an RMS norm.

    A perceiver resampler (arXiv 2103.03206, 2204.14198), which makes the head's cross-attention cheaper where there
    are many image tokens, and gives prompts of any length a condition of one length, without a mask.

    Args:
        in_features: width of the states.
        out_features: condition width of the diffusion head.
        num_latents: number of condition positions.
        depth: number of layers.
        num_heads: attention heads; must divide `width`.
        width: channels of the layers; the states are projected to it where it differs. `in_features` when None.
        mlp_ratio: hidden width of the perceptrons over `width`.
        norm_gain: starting value of the last norm's gain.
        eps: the last norm's epsilon.
        reads: what it reads, see `Bridge`.
        num_queries: number of learned queries, where it reads those.
        ar_layers: layers of the AR model that it mixes, see `Bridge`.

    Raises:
        ValueError: if there is no latent or no layer, or `num_heads` does not divide the width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_latents: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        width: int | None = None,
        mlp_ratio: float = 4.0,
        norm_gain: float = NORM_GAIN,
        eps: float = 1e-5,
        reads: Reads = "image_tokens",
        num_queries: int | None = None,
        ar_layers: list[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, reads=reads, num_queries=num_queries, ar_layers=ar_layers)
        width = in_features if width is None else width
        if num_latents < 1:
            raise ValueError(f"num_latents ({num_latents}) must be at least 1.")
        self.proj_in = nn.Identity() if width == in_features else nn.Linear(in_features, width)
        self.norm_in = nn.LayerNorm(width)
        self.latent_queries = nn.Parameter(torch.randn(num_latents, width))
        self.blocks = attention_layers(nn.TransformerDecoderLayer, depth, width, num_heads, mlp_ratio)
        self.proj_out = nn.Linear(width, out_features)
        self.norm_out = condition_norm(out_features, norm_gain, eps)

    def num_positions(self, num_states: int | None) -> int:
        """The latents, whatever is read."""
        return len(self.latent_queries)

    def forward(self, states: ARStates) -> Conditioning:
        """`num_latents` condition positions; positions of the states that do not count are not seen."""
        memory = self.norm_in(self.placed(self.proj_in(self.fused(states))))
        x = repeat(self.latent_queries, "m d -> b m d", b=len(memory))
        padding = padding_mask(states)
        for block in self.blocks:
            x = block(x, memory, memory_key_padding_mask=padding)
        return Conditioning(self.norm_out(self.proj_out(x)))
