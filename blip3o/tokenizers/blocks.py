"""Convolutional blocks that encoders and decoders of tokenizers are made of."""

from __future__ import annotations

from torch import Tensor, nn


def conv_stack(in_channels: int, width: int, depth: int, out_channels: int) -> nn.Sequential:
    """Maps (B, in_channels, H, W) to (B, out_channels, H, W) through `depth` residual blocks of `width` channels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 1),
        *(ConvBlock(width) for _ in range(depth)),
        ChannelNorm(width),
        nn.Conv2d(width, out_channels, 1),
    )


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each position of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises every position on its own."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """A residual block: 3x3 convolution by channel, then a two-layer perceptron at every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate", groups=width)
        self.norm = ChannelNorm(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return x + self.mlp(self.norm(self.spatial(x)))
