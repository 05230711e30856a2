"""The policy of reinforcement learning: how likely the AR model is to write given image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from blip3o.ar.base import ARBackbone
from blip3o.model import Blip3oNext


@dataclass(frozen=True)
class TokenScores:
    """What the policy says of given tokens.

    Attributes:
        log_probs: (R, N) float32.
        entropy: (R, N) float32 of the distribution over image ids at each token, without gradient.
    """

    log_probs: Tensor
    entropy: Tensor


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
