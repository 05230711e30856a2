"""Small layers that bridges share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3o.structures import ARStates

NORM_GAIN = math.sqrt(5.5)
"""Gain that the published bridge's norm starts with."""


def condition_norm(width: int, gain: float, eps: float) -> nn.RMSNorm:
    """The RMS norm that ends a bridge; conditions of all bridges start with the same root mean square, `gain`."""
    norm = nn.RMSNorm(width, eps=eps)
    nn.init.constant_(norm.weight, gain)
    return norm


def padding_mask(states: ARStates) -> Tensor | None:
    """Which positions are not seen, (B, L) bool, as torch's attention layers ask for it.

    None where all are seen, and where there are no rows, on which those layers fail with a mask.
    """
    return None if states.mask is None or len(states.mask) == 0 else ~states.mask


def attention_layers(
    kind: type[nn.TransformerEncoderLayer] | type[nn.TransformerDecoderLayer],
    depth: int,
    width: int,
    num_heads: int,
    mlp_ratio: float,
) -> nn.ModuleList:
    """Torch's layers of one kind, with norms first and without dropout.

    Raises:
        ValueError: if there is no layer, or the heads do not divide the width.
    """
    if depth < 1:
        raise ValueError(f"depth ({depth}) must be at least 1; MLPBridge is the bridge without attention.")
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads ({num_heads}) must divide width ({width}); set one of them.")
    hidden = int(mlp_ratio * width)
    return nn.ModuleList(
        kind(width, num_heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        for _ in range(depth)
    )


class LayerMix(nn.Module):
    """A learned mix of several layers, as ELMo's (arXiv 1802.05365): softmax weights, even at first.

    Each layer is brought to unit root mean square before, as the residual stream grows with depth: otherwise the late
    layers would drown the early ones.

    Args:
        num_layers: number of layers.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, layers: Tensor) -> Tensor:
        """(B, K, L, H) to (B, L, H)."""
        normed = F.rms_norm(layers, layers.shape[-1:], eps=1e-6)
        return torch.einsum("k,bklh->blh", self.weights.softmax(0).to(normed.dtype), normed)


def sinusoids(count: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of the positions 0..count-1 (arXiv 1706.03762), (count, width), on the device of `like`."""
    half = (width + 1) // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=like.device) / half)
    angles = torch.arange(count, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width].to(like.dtype)
