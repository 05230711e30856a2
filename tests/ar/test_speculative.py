"""Speculative sampling: what is kept and what replaces it have together the distribution asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from blip3o.ar import Sampling
from blip3o.ar.decoding import draw, filter_logits, invert
from blip3o.ar.speculative import count_kept, distribution, replace_draft

COUNT = 20_000
NEW = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2])
OLD = torch.tensor([0.3, 0.2, 0.0, 0.3, 0.2])


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("old", [OLD, NEW, torch.full((5,), 0.2)], ids=["other", "equal", "uniform"])
def test_drafts_of_one_distribution_become_draws_of_another(old: Tensor) -> None:
    new, old = NEW.expand(COUNT, 1, -1), old.expand(COUNT, 1, -1)
    drafts = invert(old, numbers(0, COUNT, 1))
    kept = count_kept(new, old, drafts, numbers(1, COUNT, 1))
    ids = torch.where(kept == 1, drafts[:, 0], replace_draft(new[:, 0], old[:, 0], numbers(2, COUNT)))
    counts = torch.bincount(ids, minlength=5)
    assert counts[1] == 0, "an id without probability is never drawn"
    assert chisquare(counts[NEW > 0], COUNT * NEW[NEW > 0] / NEW.sum()).pvalue > 1e-3
    overlap = float(torch.minimum(new, old)[0].sum())
    assert kept.float().mean() == pytest.approx(overlap, abs=0.02)


def test_drafts_are_kept_up_to_the_first_that_is_not() -> None:
    sure, never = [0.0, 1.0], [1.0, 0.0]
    new = torch.tensor([[sure, sure, never, sure], [never, sure, sure, sure], [sure] * 4])
    old = torch.tensor([0.5, 0.5]).expand(3, 4, -1)
    drafts = torch.ones(3, 4, dtype=torch.int64)
    assert count_kept(new, old, drafts, numbers(0, 3, 4)).tolist() == [2, 0, 4]
    assert count_kept(new[:, :0], old[:, :0], drafts[:, :0], numbers(0, 3, 0)).tolist() == [0, 0, 0]


def test_the_ends_of_the_unit_interval() -> None:
    """The number 0 does not keep what is impossible, nor does the largest number lose what is as likely as before."""
    old, drafts = OLD.expand(1, 1, -1), torch.ones(1, 1, dtype=torch.int64)
    assert count_kept(NEW.expand(1, 1, -1), old, drafts, torch.zeros(1, 1)).item() == 0
    assert count_kept(old, old, drafts, torch.full((1, 1), 1 - 2**-24)).item() == 1


def test_where_there_was_no_draft_or_nothing_is_left_the_new_distribution_is_drawn_from() -> None:
    for old in (torch.zeros(5), NEW):
        ids = replace_draft(NEW.expand(COUNT, -1), old.expand(COUNT, -1), numbers(3, COUNT))
        counts = torch.bincount(ids, minlength=5)
        assert chisquare(counts[NEW > 0], COUNT * NEW[NEW > 0] / NEW.sum()).pvalue > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(1.5, top_k=4, top_p=0.9)], ids=str)
def test_the_distribution_is_the_one_that_sequential_decoding_draws_from(sampling: Sampling) -> None:
    logits = 2 * torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0))
    probabilities, log_probs = distribution(logits, sampling)
    ids, expected = draw(logits.flatten(0, 1), sampling, torch.Generator().manual_seed(1))
    torch.testing.assert_close(log_probs.flatten(0, 1).gather(1, ids[:, None])[:, 0], expected)
    if sampling.temperature == 0:
        assert torch.equal(probabilities, F.one_hot(ids, 12).float().view(3, 4, 12))
    else:
        filtered = filter_logits(logits.flatten(0, 1), sampling).softmax(-1)
        torch.testing.assert_close(probabilities.flatten(0, 1), filtered)
