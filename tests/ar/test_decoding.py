"""Drawing tokens: filters against a reference by hand, and the frequencies of what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare

from blip3o.ar import Sampling
from blip3o.ar.decoding import draw, filter_logits, top_values, uniform
from tests.tiny import generators

LOGITS = 2 * torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


def reference(logits: list[float], sampling: Sampling) -> list[float]:
    """Probabilities after temperature, top-k and top-p, one token at a time."""
    scaled = [value / sampling.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    order = order[: sampling.top_k or len(order)]
    weight = {token: math.exp(scaled[token]) for token in order}
    whole, reached, kept = sum(weight.values()), 0.0, []
    for token in order:
        if reached >= sampling.top_p * whole:
            break
        kept.append(token)
        reached += weight[token]
    return [weight[token] / reached if token in kept else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 12, 1200])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_the_filters_equal_a_reference_by_hand(temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = torch.tensor([reference(row, sampling) for row in LOGITS.tolist()])
    probabilities = filter_logits(LOGITS, sampling).softmax(-1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(probabilities > 0, expected > 0)


@pytest.mark.parametrize("sampling", [Sampling(top_k=0, top_p=1.0), Sampling(temperature=0.7, top_k=5, top_p=0.9)])
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling: Sampling) -> None:
    logits = LOGITS[0]
    ids, _ = draw(logits.expand(20_000, -1), sampling, torch.Generator().manual_seed(1))
    counts = torch.bincount(ids, minlength=12).double()
    expected = torch.tensor(reference(logits.tolist(), sampling), dtype=torch.float64)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert kept.sum() >= 3
    assert chisquare(counts[kept].numpy(), (expected * counts.sum())[kept].numpy()).pvalue > 1e-3


def test_successive_draws_of_one_generator_are_independent() -> None:
    generator = torch.Generator().manual_seed(2)
    sampling = Sampling(top_k=2, top_p=1.0)
    logits = torch.tensor([[0.0, 0.0, -9.0]])
    drawn = [int(draw(logits, sampling, generator)[0]) for _ in range(400)]
    pairs = [drawn[i : i + 2] for i in range(0, 400, 2)]
    counts = [pairs.count(pair) for pair in ([0, 0], [0, 1], [1, 0], [1, 1])]
    assert sum(counts) == 200
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.5, top_k=4), Sampling(temperature=0.0)], ids=str
)
def test_log_probabilities_are_those_of_a_normalised_distribution(sampling: Sampling) -> None:
    ids, log_probs = draw(LOGITS, sampling, torch.Generator().manual_seed(3))
    filtered = LOGITS if sampling.temperature == 0 else filter_logits(LOGITS, sampling)
    normalised = filtered - filtered.exp().sum(-1, keepdim=True).log()
    torch.testing.assert_close(log_probs, normalised.gather(1, ids[:, None])[:, 0])
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(normalised.exp().sum(-1), torch.ones(8))


def test_temperature_zero_takes_the_most_likely_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    state = generator.get_state()
    ids, _ = draw(LOGITS, Sampling(temperature=0.0), generator)
    assert torch.equal(ids, LOGITS.argmax(-1))
    assert torch.equal(generator.get_state(), state)


def test_extreme_logits_draw_only_what_is_possible() -> None:
    logits = torch.full((1000, 5), -torch.inf)
    logits[:, 3] = 0.0
    assert (draw(logits, Sampling(), torch.Generator().manual_seed(5))[0] == 3).all()
    logits = torch.tensor([[1e4, 0.0, -1e4]]).expand(1000, -1)
    ids, log_probs = draw(logits, Sampling(top_k=0, top_p=1.0), torch.Generator().manual_seed(5))
    assert (ids == 0).all() and (log_probs == 0).all()


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1 - 2**-24, 3)])
def test_the_ends_of_the_unit_interval_draw_tokens_that_were_kept(
    number: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip3o.ar.decoding.uniform", lambda rows, *_: torch.full((rows,), number))
    ids, log_probs = draw(torch.tensor([[-9.0, 1.0, 2.0, 3.0, -9.0]]), Sampling(top_k=3, top_p=1.0), None)
    assert ids.tolist() == [expected] and log_probs.isfinite().all()


def test_each_row_draws_from_its_own_generator() -> None:
    together = uniform(4, generators(4), torch.device("cpu"))
    alone = [uniform(1, generators(1, first_seed=seed), torch.device("cpu")) for seed in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique()) == 4
    for count in (1, 5):
        with pytest.raises(ValueError, match=f"{count} generators for 4 rows"):
            uniform(4, generators(count), torch.device("cpu"))


def test_one_generator_gives_the_same_draws_again_and_leaves_torchs_own_alone() -> None:
    state = torch.get_rng_state()
    first, again = (draw(LOGITS, Sampling(), torch.Generator().manual_seed(6))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, r"temperature \(-0.1\)"),
        ({"top_k": -1}, r"top_k \(-1\)"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
        ({"top_p": 1.1}, r"top_p \(1.1\)"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)  # type: ignore[arg-type]


def test_the_defaults_are_the_published_ones() -> None:
    assert Sampling() == Sampling(temperature=1.0, top_k=1200, top_p=0.95)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("size", "count"), [(800, 40), (800, 50), (800, 60), (801, 40), (800, 1), (8, 8)])
def test_the_largest_values_are_those_of_topk(rows: int, size: int, count: int) -> None:
    """Where columns are searched (up to a sixteenth of the size) and where they are not."""
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size + count))
    values, order = top_values(logits, count)
    expected = logits.topk(count)
    assert torch.equal(values, expected.values) and torch.equal(order, expected.indices)


def test_the_largest_values_of_ties_are_as_many_and_each_its_own() -> None:
    logits = torch.randint(0, 3, (4, 800), generator=torch.Generator().manual_seed(0)).float()
    values, order = top_values(logits, 40)
    assert torch.equal(values, logits.topk(40).values) and torch.equal(logits.gather(1, order), values)
    assert all(len(set(row)) == 40 for row in order.tolist())


@pytest.mark.parametrize("sampling", [Sampling(1.3, 40, 0.9), Sampling(0.7, 40, 1.0), Sampling(1.0, 0, 0.8)])
def test_drawing_among_the_kept_is_drawing_from_the_filtered(sampling: Sampling) -> None:
    """The same number gives the same id as the distribution over all ids, and its log-probability."""
    logits = 3 * torch.randn(2000, 800, generator=torch.Generator().manual_seed(0))
    ids, log_probs = draw(logits, sampling, torch.Generator().manual_seed(1))
    expected = filter_logits(logits, sampling).log_softmax(-1)
    torch.testing.assert_close(log_probs, expected.gather(1, ids[:, None])[:, 0])
    numbers = uniform(2000, torch.Generator().manual_seed(1), logits.device)
    below = expected.double().exp().cumsum(-1)
    inverted = (below <= numbers[:, None] * below[:, -1:]).sum(-1)
    assert (ids == inverted).float().mean() > 0.995, "but for rounding at a border"
