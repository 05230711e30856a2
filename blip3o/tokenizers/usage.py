"""How much of a codebook is used: the two numbers that tell a collapsed tokenizer from a good one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUsage(NamedTuple):
    """How much of a codebook a set of tokens uses.

    Attributes:
        usage: scalar in [0, 1], share of the codes that occur at all.
        perplexity: scalar in [1, codebook_size], the exponential of the entropy of the codes' shares: the number of
            codes that, all used alike, would be as hard to guess.
    """

    usage: Tensor
    perplexity: Tensor


def count_codes(ids: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in ids (...): (codebook_size,) int64. Counts of several batches can be added."""
    return torch.bincount(ids.flatten(), minlength=codebook_size)


def codebook_usage(counts: Tensor) -> CodebookUsage:
    """Usage and perplexity of counts (codebook_size,), which must not be all zero."""
    shares = counts / counts.sum()
    return CodebookUsage((shares > 0).float().mean(), torch.special.entr(shares).sum().exp())
