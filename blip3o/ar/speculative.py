"""Speculative sampling: drafts of one distribution become draws of another.

A draft x that was drawn from q is kept with probability min(1, p(x) / q(x)); in place of the first of a row that is not
kept, an id is drawn from what p has beyond q, normalised. What comes out is distributed as p, whatever q was (Leviathan
et al. 2023, arXiv 2211.17192, theorem 3.5; Chen et al. 2023, arXiv 2302.01318).
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip3o.ar.base import Sampling
from blip3o.ar.decoding import filter_logits, invert


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What tokens are drawn from, as by `draw`.

    Args:
        logits: (B, T, V).
        sampling: temperature, top-k, top-p.

    Returns:
        Probabilities (B, T, V) float32, for temperature 0 all on the most likely id; and the log-probabilities that are
        told of the ids, which for temperature 0 are those of the unfiltered logits.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0), logits.log_softmax(-1)
    log_probs = filter_logits(logits.flatten(0, 1), sampling).view_as(logits).log_softmax(-1)
    return log_probs.exp(), log_probs


def count_kept(new: Tensor, old: Tensor, drafts: Tensor, numbers: Tensor) -> Tensor:
    """How many of the first drafts of each row are kept, (B,) int64.

    Args:
        new: (B, T, V) probabilities p that draws shall have, given all drafts before.
        old: (B, T, V) probabilities q that the drafts were drawn with.
        drafts: (B, T) int64.
        numbers: (B, T) uniform in [0, 1), which nothing else has used.
    """
    wanted, had = (probabilities.gather(-1, drafts[..., None])[..., 0] for probabilities in (new, old))
    kept = (numbers * had <= wanted) & (wanted > 0)
    return kept.long().cumprod(-1).sum(-1)


def replace_draft(new: Tensor, old: Tensor, numbers: Tensor) -> Tensor:
    """Ids (B,) in place of drafts that were not kept.

    Args:
        new: (B, V) probabilities p that draws shall have.
        old: (B, V) probabilities q that the drafts were drawn with; 0 where there was no draft, and p is drawn from.
        numbers: (B,) uniform in [0, 1), which nothing else has used.
    """
    beyond = (new - old).clamp(min=0)
    # Rounding may leave nothing where both are all but equal.
    return invert(torch.where(beyond.sum(-1, keepdim=True) > 0, beyond, new), numbers)
