"""A connector whose positions see one another."""

from __future__ import annotations

from torch import nn

from blip3o.bridge.base import Bridge, Reads
from blip3o.bridge.layers import NORM_GAIN, attention_layers, condition_norm, padding_mask
from blip3o.structures import ARStates, Conditioning


class TransformerBridge(Bridge):
    """Bidirectional transformer layers, then a projection to the condition and an RMS norm.

    MetaQuery's connector (arXiv 2504.06256, "Enc-Proj"): the layers work at the width of the states, which it found
    as good as working at the condition's and cheaper. A causal model's states have seen only what stands before
    them; here each sees all. `reads: queries` makes the whole of MetaQuery.

    Args:
        in_features: width of the states.
        out_features: condition width of the diffusion head.
        depth: number of layers; MetaQuery has up to 24.
        num_heads: attention heads; must divide `width`.
        width: channels of the layers; the states are projected to it where it differs. `in_features` when None.
        mlp_ratio: hidden width of the perceptrons over `width`.
        norm_gain: starting value of the last norm's gain.
        eps: the last norm's epsilon.
        reads: what it reads, see `Bridge`.
        num_queries: number of learned queries, where it reads those.
        ar_layers: layers of the AR model that it mixes, see `Bridge`.

    Raises:
        ValueError: if there is no layer, or `num_heads` does not divide the width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 4,
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
        self.proj_in = nn.Identity() if width == in_features else nn.Linear(in_features, width)
        self.blocks = attention_layers(nn.TransformerEncoderLayer, depth, width, num_heads, mlp_ratio)
        self.proj_out = nn.Linear(width, out_features)
        self.norm_out = condition_norm(out_features, norm_gain, eps)

    def forward(self, states: ARStates) -> Conditioning:
        """One condition position for every position of the states; positions that do not count are not seen."""
        x = self.placed(self.proj_in(self.fused(states)))
        padding = padding_mask(states)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding)
        return Conditioning(self.norm_out(self.proj_out(x)), states.mask)
