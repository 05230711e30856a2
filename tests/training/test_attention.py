"""The kernel chosen for training: plain products on a CPU under autocast, torch's own choice elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blip3o.training.attention import fast_attention


@pytest.mark.parametrize("autocast", [False, True])
def test_only_autocast_on_a_cpu_changes_the_kernel_and_no_kernel_changes_the_result(autocast: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), fast_attention(torch.device("cpu")):
        assert torch.backends.cuda.flash_sdp_enabled() is not autocast
        actual = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)
    assert torch.backends.cuda.flash_sdp_enabled()
