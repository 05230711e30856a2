"""The counter of operations: convolutions with and without groups, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blip3o.flops import flop_counter


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_backward_pass_of_a_convolution_takes_twice_the_forward_pass(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer, images = kind(8, 8, 3, padding=1, groups=groups), torch.randn(2, 8, 5, 5, requires_grad=True)
    with flop_counter() as forward:
        made = layer(images)
    with flop_counter() as backward:
        made.sum().backward()
    assert forward.get_total_flops() == 2 * 2 * 25 * 8 * (8 // groups) * 9
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_an_input_that_needs_no_gradient_takes_none() -> None:
    layer, images = nn.Conv2d(8, 8, 3, groups=8), torch.randn(2, 8, 5, 5)
    with flop_counter() as forward:
        made = layer(images)
    with flop_counter() as backward:
        made.sum().backward()
    assert backward.get_total_flops() == forward.get_total_flops()
