"""Counting floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def flop_counter() -> FlopCounterMode:
    """Torch's counter, without its table, that knows groups.

    For the weights of a grouped convolution torch counts the backward pass of a dense one: 64 times too much for a
    depthwise convolution of 64 channels, such as SANA's.
    """
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_of_convolution}
    )


def _backward_of_convolution(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *arguments: Any,
    out_shape: Any = None,
) -> int:
    """The gradients of input and weights each take as much as the convolution itself.

    Args:
        grad_out_shape: of the output's gradient.
        x_shape: of the input.
        w_shape: of the weights, whose second size is that of a group.
        arguments: bias, stride, padding, dilation, whether transposed, output padding, groups, which are wanted.
        out_shape: not used.
    """
    *_, transposed, _, _, wanted = arguments
    itself = conv_flop_count(list(x_shape), list(w_shape), list(grad_out_shape), transposed=transposed)
    return itself * sum(wanted[:2])
