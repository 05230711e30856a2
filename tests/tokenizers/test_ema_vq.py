"""EMA-VQ and residual VQ: the moving averages by hand, in training alone, and what residual ids mean."""

from __future__ import annotations

import copy

import pytest
import torch
from einops import reduce
from torch import Tensor

from blip3o.tokenizers import EMAVQ, Quantizer, ResidualVQ
from tests.tiny import rebuilt, seeded


def vectors(count: int, dim: int, seed: int = 4) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def ema(**arguments: float) -> EMAVQ:
    with seeded(0):
        return EMAVQ(**{"codebook_size": 6, "dim": 3, **arguments})  # type: ignore[arg-type]


def residual(**arguments: float) -> ResidualVQ:
    with seeded(0):
        return ResidualVQ(**{"num_levels": 3, "level_size": 8, "dim": 4, **arguments})  # type: ignore[arg-type]


def merged(quantizer: Quantizer, codes: Tensor) -> Tensor:
    """Quantised vectors (..., M, dim) of codes (..., M K, dim)."""
    return reduce(codes, "... (m k) d -> ... m d", "sum", k=quantizer.tokens_per_vector)


def table(quantizer: Quantizer) -> Tensor:
    """All codes."""
    return quantizer.codes(torch.arange(quantizer.codebook_size)).clone()


def nearest(given: Tensor, codes: Tensor) -> Tensor:
    return (given.double()[:, None] - codes.double()).square().sum(-1).argmin(1)


def test_codes_move_as_the_moving_averages_say() -> None:
    quantizer = ema(decay=0.8, revive_below=0.0)
    size = torch.ones(6, dtype=torch.float64)
    total = table(quantizer).double()
    for seed in range(3):
        given, before = vectors(40, 3, seed), table(quantizer)
        features, ids, loss = quantizer.quantize(given)
        assert torch.equal(ids, nearest(given, before))
        torch.testing.assert_close(features, before[ids], msg="the codes as they were before they moved")
        torch.testing.assert_close(loss, 0.25 * (given - before[ids]).square().mean())
        chosen = torch.nn.functional.one_hot(ids, 6).double()
        size = 0.8 * size + 0.2 * chosen.sum(0)
        total = 0.8 * total + 0.2 * chosen.T @ given.double()
        smoothed = (size + 1e-5) / (size.sum() + 6e-5) * size.sum()
        torch.testing.assert_close(table(quantizer).double(), total / smoothed[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [ema, residual])
def test_training_moves_codes_towards_the_data_and_evaluation_moves_none(build: type[Quantizer]) -> None:
    quantizer = build()
    given = 5 + vectors(256, quantizer.dim)
    before = table(quantizer)
    quantizer.eval()
    state = torch.get_rng_state()
    first = quantizer.quantize(given)
    assert torch.equal(table(quantizer), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1], quantizer.quantize(given)[1]) and first[2] == 0
    quantizer.train()
    with seeded(0):
        for _ in range(150):
            quantizer.quantize(given)
    quantizer.eval()
    again = quantizer.quantize(given)
    errors = [(merged(quantizer, features) - given).square().mean() for features in (first[0], again[0])]
    assert errors[1] < 0.05 * errors[0]
    torch.testing.assert_close(quantizer.codes(again[1]), again[0])


@pytest.mark.parametrize("build", [ema, residual])
def test_codes_that_nothing_uses_come_back_to_life(build: type[Quantizer]) -> None:
    """Vectors far away all share the nearest code until the others are put among them."""
    given = 50 + vectors(256, build().dim)
    used = []
    for revive_below in (0.0, 0.1):
        quantizer = build(decay=0.9, revive_below=revive_below)  # type: ignore[call-arg]
        with seeded(0):
            for _ in range(60):
                quantizer.quantize(given)
        ids = quantizer.eval().quantize(given)[1]
        first_level = quantizer.codebook_size // quantizer.tokens_per_vector
        used.append(len(ids[ids < first_level].unique()))
    assert used == [1, first_level]


@pytest.mark.parametrize("build", [ema, residual])
def test_ids_are_chosen_in_float32_under_autocast(build: type[Quantizer]) -> None:
    quantizer = build().eval()
    given = vectors(300, quantizer.dim)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = quantizer.quantize(given)
    assert torch.equal(lowered[1], quantizer.quantize(given)[1])
    half = copy.deepcopy(quantizer).to(torch.bfloat16).quantize(given.bfloat16())
    assert half[0].dtype == torch.bfloat16


def test_each_level_quantises_what_those_before_left_over() -> None:
    quantizer = residual(commitment_weight=0.5)
    given, codes = vectors(20, 4), table(quantizer).unflatten(0, (3, 8))
    left, sums, expected = given.clone(), torch.zeros_like(given), []
    commitment = torch.zeros(())
    for level in range(3):
        ids = nearest(left, codes[level])
        expected.append(ids + 8 * level)
        sums, left = sums + codes[level][ids], left - codes[level][ids]
        commitment = commitment + (given - sums).square().mean()
    features, ids, loss = quantizer.quantize(given)
    assert torch.equal(ids, torch.stack(expected, 1).flatten())
    torch.testing.assert_close(merged(quantizer, features), sums)
    torch.testing.assert_close(loss, 0.5 * commitment)


def test_residual_ids_name_their_codes_alone_and_keep_leading_dimensions() -> None:
    quantizer = residual().eval()
    assert (quantizer.codebook_size, quantizer.tokens_per_vector) == (24, 3)
    features, ids, _ = quantizer.quantize(vectors(30, 4).view(2, 5, 3, 4))
    assert ids.shape == (2, 5, 9) and features.shape == (2, 5, 9, 4)
    assert torch.equal(ids // 8, torch.arange(3).repeat(2, 5, 3))
    torch.testing.assert_close(quantizer.codes(ids), features)
    mixed = torch.tensor([[23, 0, 1, 9, 9, 9]])
    torch.testing.assert_close(merged(quantizer, quantizer.codes(mixed))[0, 1], 3 * quantizer.codes(torch.tensor(9)))


def test_residual_config_builds_it_again() -> None:
    quantizer = residual()
    again = rebuilt(quantizer)
    assert again.config() == quantizer.config()
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(table(again), table(quantizer))
