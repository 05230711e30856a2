"""The loss against sums written out in float64, for every kind of it; advantages by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from blip3o.training.grpo_loss import LossType, count, group_advantages, k3, spread, summed, token_losses

ROWS, TOKENS = 6, 5


def random_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(ROWS, TOKENS).abs() - 0.1
    mask = torch.rand(ROWS, TOKENS, generator=generator) < 0.7
    mask[0], mask[1] = False, True
    return {
        "log_probs": old + 0.3 * normal(ROWS, TOKENS),
        "old": old,
        "reference": old + 0.3 * normal(ROWS, TOKENS),
        "advantages": normal(ROWS),
        "mask": mask,
    }


def written_out(b: dict[str, Tensor], kind: str, low: float, high: float, beta: float) -> float:
    """The mean loss, one token after the other."""
    rows, tokens, lengths = [], 0.0, 0
    for r in range(ROWS):
        terms = []
        for n in range(TOKENS):
            if not b["mask"][r, n]:
                continue
            ratio = math.exp(b["log_probs"][r, n] - b["old"][r, n])
            gain = float(b["advantages"][r])
            clipped = max(1 - low, min(1 + high, ratio))
            behind = float(b["reference"][r, n] - b["log_probs"][r, n])
            terms.append(-min(ratio * gain, clipped * gain) + beta * (math.exp(behind) - behind - 1))
        if terms:
            rows.append(sum(terms) / len(terms))
        tokens += sum(terms)
        lengths += len(terms)
    if kind == "grpo":
        return sum(rows) / len(rows)
    return tokens / lengths if kind == "dapo" else tokens / (ROWS * TOKENS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize(("low", "high", "beta"), [(0.2, None, 0.0), (0.2, 0.28, 0.04), (0.1, 0.3, 1.0)])
def test_the_loss_is_what_is_written_out(
    kind: LossType, low: float, high: float | None, beta: float, seed: int
) -> None:
    b = random_batch(seed)
    losses = token_losses(
        b["log_probs"],
        b["old"],
        b["advantages"],
        epsilon=low,
        epsilon_high=high,
        beta=beta,
        kl=k3(b["log_probs"], b["reference"]),
    )
    value = summed(losses.loss, b["mask"], kind) / count(b["mask"], kind, ROWS)
    expected = written_out(b, kind, low, low if high is None else high, beta)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert losses.kl is not None and (losses.kl >= 0).all()


def test_the_three_means_differ_only_where_tokens_are_left_out() -> None:
    losses, every = random_batch()["log_probs"], torch.ones(ROWS, TOKENS, dtype=torch.bool)
    kinds: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo")
    values = [float(summed(losses, every, kind) / count(every, kind, ROWS)) for kind in kinds]
    assert values == pytest.approx([float(losses.mean())] * 3)
    some = random_batch()["mask"]
    assert len({round(float(summed(losses, some, kind) / count(some, kind, ROWS)), 6) for kind in kinds}) == 3


def test_clipping_is_told_where_it_leaves_no_gradient() -> None:
    log_probs = torch.tensor([[0.5, -0.5, 0.0], [0.5, -0.5, 0.0]], requires_grad=True)
    losses = token_losses(log_probs, torch.zeros(2, 3), torch.tensor([1.0, -1.0]))
    losses.loss.sum().backward()
    assert losses.clipped.tolist() == [[True, False, False], [False, True, False]]
    assert log_probs.grad is not None
    assert torch.equal(log_probs.grad == 0, losses.clipped)


def test_the_divergence_pulls_towards_the_reference() -> None:
    log_probs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    reference = torch.tensor([[-2.0, -2.0]])
    losses = token_losses(log_probs, log_probs.detach(), torch.zeros(1), beta=0.5, kl=k3(log_probs, reference))
    losses.loss.sum().backward()
    assert losses.kl is not None
    assert losses.kl.tolist()[0] == pytest.approx([math.exp(-1) + 1 - 1, math.exp(1) - 1 - 1])
    assert log_probs.grad is not None  # descent lowers what is likelier than under the reference, and the reverse
    assert log_probs.grad[0, 0] > 0 > log_probs.grad[0, 1]


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.7, 0.7, 0.7, 0.7]], dtype=torch.float64)
    std = math.sqrt(1 / 3)
    given = group_advantages(rewards)
    assert given[0].tolist() == pytest.approx([0.5 / (std + 1e-4) * sign for sign in (1, -1, -1, 1)])
    assert given[1].tolist() == [0.0] * 4
    assert spread(rewards).tolist() == [1.0, 0.0]
    assert group_advantages(rewards, "none")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    whole = float(rewards.std())
    assert float(group_advantages(rewards, "batch")[0, 0]) == pytest.approx(0.5 / (whole + 1e-4))
    everyone = torch.cat([rewards, rewards * 3])
    assert float(group_advantages(rewards, "batch", everyone)[0, 0]) == pytest.approx(
        0.5 / (float(everyone.std()) + 1e-4)
    )


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e8 / 3])
def test_equal_rewards_are_worth_exactly_nothing(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        rewards = torch.full((2, 7), value, dtype=dtype)
        assert not group_advantages(rewards).any()
