"""Group relative policy optimisation as pure functions: advantages, losses of tokens, and their mean.

Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO), Liu et al. 2025 (Dr. GRPO). Letters: P prompts, G generations of each,
R sequences, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo"]
ScaleRewards = Literal["group", "batch", "none"]

EPS = 1e-4
"""Added to a standard deviation before it divides."""


@dataclass(frozen=True)
class TokenLosses:
    """Losses of tokens, not yet reduced.

    Attributes:
        loss: (R, N).
        ratio: (R, N) probability under the policy over that under the policy that drew the token.
        clipped: (R, N) bool, where clipping left no gradient.
        kl: (R, N) divergence from the reference, at least 0; None without one.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    kl: Tensor | None


def group_advantages(rewards: Tensor, scale: ScaleRewards = "group", everyone: Tensor | None = None) -> Tensor:
    """Advantages (P, G) of rewards (P, G): less their group's mean, over a standard deviation plus `EPS`.

    Where all rewards of a group are equal the advantages are exactly 0.

    Args:
        rewards: of the generations of each prompt.
        scale: which standard deviation (unbiased): that of the `group`, of the whole `batch`, or `none`.
        everyone: rewards of the batches of all processes, for `batch`; `rewards` when None.
    """
    centered = rewards - rewards.mean(1, keepdim=True)
    centered = torch.where(spread(rewards)[:, None] == 0, torch.zeros_like(centered), centered)
    if scale == "none":
        return centered
    std = rewards.std(1, keepdim=True) if scale == "group" else (rewards if everyone is None else everyone).std()
    return centered / (std + EPS)


def spread(rewards: Tensor) -> Tensor:
    """Greatest less least reward (P,) of each group."""
    return rewards.amax(1) - rewards.amin(1)


def token_losses(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    kl: Tensor | None = None,
) -> TokenLosses:
    """The clipped surrogate of every token, with the divergence from a reference.

    Args:
        log_probs: (R, N) under the policy; gradients flow through these and `kl` alone.
        old_log_probs: (R, N) under the policy that drew the tokens.
        advantages: (R,) of the sequences.
        epsilon: how far below 1 a ratio counts.
        epsilon_high: how far above 1 a ratio counts; `epsilon` when None.
        beta: weight of the divergence.
        kl: (R, N) divergence from the reference; None for none.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = (log_probs - old_log_probs).exp()
    gain = advantages[:, None]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + high) * gain)
    clipped = ((ratio < 1 - epsilon) & (gain < 0)) | ((ratio > 1 + high) & (gain > 0))
    loss = -surrogate if kl is None else -surrogate + beta * kl
    return TokenLosses(loss, ratio, clipped, kl)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimates of the divergence of a policy from a reference, by what both say of tokens that the policy drew.

    Args:
        log_probs: under the policy.
        reference: under the reference.
    """
    behind = reference - log_probs
    return behind.exp() - behind - 1


def summed(losses: Tensor, mask: Tensor, loss_type: LossType) -> Tensor:
    """Numerator of the mean: the sum over sequences of each one's mean (`grpo`), or over tokens.

    Args:
        losses: (R, N).
        mask: (R, N) bool, the tokens that count.
        loss_type: how the mean is taken.
    """
    total = torch.where(mask, losses, torch.zeros_like(losses)).sum(1)
    if loss_type == "grpo":
        total = total / mask.sum(1).clamp(min=1)
    return total.sum()


def count(mask: Tensor, loss_type: LossType, num_sequences: int) -> Tensor:
    """Denominator of the mean: a scalar.

    `grpo` counts the sequences that hold a token, `dapo` the tokens, and `dr_grpo` takes the constant
    `num_sequences * N`, so that nothing that is left out gives the rest more weight.

    Args:
        mask: (R, N) bool, the tokens that count.
        loss_type: how the mean is taken.
        num_sequences: sequences of the batch, with those that were left out of `mask`.
    """
    if loss_type == "grpo":
        return mask.any(1).sum().float()
    if loss_type == "dapo":
        return mask.sum().float()
    return torch.tensor(float(num_sequences * mask.shape[1]), device=mask.device)
