"""Usage and perplexity against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from blip3o.tokenizers.usage import codebook_usage, count_codes


def test_usage_and_perplexity_by_hand() -> None:
    ids = torch.tensor([[0, 0, 0, 0], [1, 1, 5, 5]])
    counts = count_codes(ids, 8)
    assert counts.tolist() == [4, 2, 0, 0, 0, 2, 0, 0]
    used = codebook_usage(counts)
    assert used.usage == 3 / 8
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert used.perplexity.item() == pytest.approx(math.exp(entropy))


def test_the_ends_of_the_range_and_batches_that_add_up() -> None:
    assert codebook_usage(count_codes(torch.full((9,), 3), 16)).perplexity == 1
    full = codebook_usage(count_codes(torch.arange(16), 16))
    assert full.usage == 1 and full.perplexity.item() == pytest.approx(16)
    halves = count_codes(torch.arange(8), 16) + count_codes(torch.arange(8, 16), 16)
    assert codebook_usage(halves).perplexity.item() == pytest.approx(16)
