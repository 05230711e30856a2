"""What a policy of reinforcement learning says of its actions, and how likely the AR model is to write given tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from blip3o.ar.base import ARBackbone
from blip3o.model import Blip3oNext
from blip3o.training.grpo_loss import k3


@dataclass(frozen=True)
class Scores(ABC):
    """What a policy says of R sequences of N actions.

    Attributes:
        log_probs: (R, N) float32, of the actions that were taken.
    """

    log_probs: Tensor

    @property
    @abstractmethod
    def kept(self) -> Tensor:
        """What must be kept of a reference's scores, R rows, to tell the divergence from it."""

    @abstractmethod
    def divergence(self, reference: Tensor) -> Tensor:
        """The divergence (R, N), at least 0, from a reference of whose scores this was `kept`."""

    def logged(self) -> dict[str, Tensor]:
        """What else is worth logging: (R, N) each, without gradient."""
        return {}


@dataclass(frozen=True)
class TokenScores(Scores):
    """What the policy says of given tokens.

    Attributes:
        log_probs: (R, N) float32.
        entropy: (R, N) float32 of the distribution over image ids at each token, without gradient.
    """

    entropy: Tensor

    @property
    def kept(self) -> Tensor:
        """The log-probabilities."""
        return self.log_probs

    def divergence(self, reference: Tensor) -> Tensor:
        """The k3 estimate."""
        return k3(self.log_probs, reference)

    def logged(self) -> dict[str, Tensor]:
        """The entropy."""
        return {"entropy": self.entropy}


def score_tokens(
    model: Blip3oNext,
    prompts: Sequence[str],
    ids: Tensor,
    *,
    temperature: float = 1.0,
    token_guidance_scale: float = 1.0,
    ar: ARBackbone | None = None,
) -> TokenScores:
    """Log-probabilities of image tokens over image ids alone, in float32, as `model.write` draws them unfiltered.

    Args:
        model: lays out the sequences.
        prompts: R captions.
        ids: (R, N) codes.
        temperature: divides the logits, above 0.
        token_guidance_scale: classifier-free guidance on the logits; 1 turns it off.
        ar: the backbone that scores them; the model's own when None.
    """
    ar = model.ar if ar is None else ar
    with torch.autocast(ids.device.type, enabled=False):
        logits = _logits(model, ar, prompts, ids)
        if token_guidance_scale != 1:
            unconditional = _logits(model, ar, [""] * len(prompts), ids)
            logits = unconditional + token_guidance_scale * (logits - unconditional)
        every = (logits.float() / temperature).log_softmax(-1)
    log_probs = every.gather(-1, ids[..., None])[..., 0]
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return TokenScores(log_probs, entropy)


def _logits(model: Blip3oNext, ar: ARBackbone, prompts: Sequence[str], ids: Tensor) -> Tensor:
    """Logits (R, N, codes), each at the position before its token."""
    vocabulary = model.sequences.vocabulary
    asked, mask = (t.to(ids.device) for t in model.sequences.prompts(prompts))
    written = ids[:, :-1] + vocabulary.first_code
    input_ids = torch.cat([asked, written], dim=1)
    mask = torch.cat([mask, torch.ones_like(written, dtype=torch.bool)], dim=1)
    scored = torch.zeros_like(mask)
    scored[:, asked.shape[1] - 1 :] = True
    output = ar(input_ids, mask, logits_for=(vocabulary.first_code, vocabulary.size), logits_at=scored)
    assert output.logits is not None, "logits were asked for"
    return rearrange(output.logits, "(r n) v -> r n v", r=len(ids))
