"""Random numbers of a row: the same in any batch, and different for every seed, row and purpose."""

from __future__ import annotations

import itertools

import torch
from scipy.stats import kstest

from blip3o.training.randomness import row_generators, row_uniform


def drawn(seed: int, index: list[int], purpose: str) -> torch.Tensor:
    """Three numbers a row: (rows, 3)."""
    return torch.stack([torch.randn(3, generator=g) for g in row_generators(seed, torch.tensor(index), purpose)])


def test_a_row_draws_the_same_in_any_batch() -> None:
    together = drawn(0, [5, 7, 9], "noise")
    assert torch.equal(drawn(0, [9, 5], "noise"), together[[2, 0]])
    uniform = row_uniform(0, torch.tensor([5, 7, 9]), "caption")
    assert torch.equal(row_uniform(0, torch.tensor([7]), "caption"), uniform[1:2])


def test_every_seed_row_and_purpose_has_a_stream_of_its_own() -> None:
    """Also where the numbers written one after the other would be alike."""
    cases = itertools.product((0, 1, 11), (1, 11, 111), ("noise", "condition"))
    firsts = {drawn(seed, [row], purpose)[0, 0].item() for seed, row, purpose in cases}
    assert len(firsts) == 18


def test_numbers_of_successive_rows_are_uniform() -> None:
    numbers = row_uniform(3, torch.arange(2000), "caption")
    assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
    assert kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]) < 0.08


def test_no_rows_draw_nothing() -> None:
    empty = torch.tensor([], dtype=torch.int64)
    assert row_uniform(0, empty, "caption").shape == (0,)
    assert row_generators(0, empty, "noise") == []


def test_torchs_own_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    row_uniform(0, torch.arange(3), "caption")
    assert torch.equal(torch.get_rng_state(), state)
