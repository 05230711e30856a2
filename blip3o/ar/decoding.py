"""Drawing tokens: temperature, top-k, top-p, and one random number a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.ar.base import Sampling

GROUPS = 8
"""How many numbers `top_values` compares first."""


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Divides by the temperature and sets what top-k and then top-p leave out to minus infinity.

    Args:
        logits: (B, V) float32.
        sampling: with a temperature above 0.

    Returns:
        (B, V) float32. The most likely token always stays.
    """
    logits = logits / sampling.temperature
    candidates = _candidates(logits, sampling)
    if candidates is None:
        return logits
    values, order = candidates
    return torch.full_like(logits, -torch.inf).scatter(-1, order, values)


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor] | None:
    """The top-k logits (B, k) in falling order, minus infinity past top-p, and their ids; None where all stay."""
    size = logits.shape[-1]
    top_k = min(sampling.top_k or size, size)
    if top_k == size and sampling.top_p == 1:
        return None
    values, order = top_values(logits, top_k)
    if sampling.top_p < 1:
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        values = values.masked_fill(before >= sampling.top_p, -torch.inf)
    return values, order


def top_values(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`logits.topk(count)` of (B, V), several times as fast where `count` is a small part of V.

    Logits stand in columns of `GROUPS`. The largest ones all stand in the columns with the largest maxima, of which
    as many suffice, so that only these are searched.
    """
    size = logits.shape[-1]
    if size % GROUPS or size // GROUPS < 2 * count:
        values, order = logits.topk(count, dim=-1)
        return values, order
    columns = logits.unflatten(1, (GROUPS, -1))
    best = columns.amax(1).topk(count, dim=-1, sorted=False).indices[:, None].expand(-1, GROUPS, -1)
    values, found = columns.gather(2, best).flatten(1).topk(count, dim=-1)
    starts = torch.arange(0, size, size // GROUPS, device=logits.device)[:, None]
    return values, (best + starts).flatten(1).gather(-1, found)


def uniform(
    rows: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
    shape: tuple[int, ...] = (),
) -> Tensor:
    """Numbers in [0, 1), (rows, *shape) float32, those of a row from its own generator where there are several.

    Raises:
        ValueError: if a list of generators does not hold one a row.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return torch.rand((rows, *shape), generator=generator, device=source).to(device)
    if len(generator) != rows:
        raise ValueError(f"generator holds {len(generator)} generators for {rows} rows; give one, or one a row.")
    return torch.cat([torch.rand((1, *shape), generator=one, device=one.device) for one in generator]).to(device)


def invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """Ids (...) int64 at which the distribution function of weights (..., V) passes numbers (...) in [0, 1).

    The weights may have any sum. An id without weight is never given.
    """
    cumulative = weights.cumsum(-1)
    threshold = numbers[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, threshold, right=True)[..., 0]
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(ids, last)


def guided(logits: Tensor, scale: float) -> Tensor:
    """Logits (B, ...) with classifier-free guidance, of (2 B, ...) whose second half is that of the negative prompts.

    A scale of 1 is no guidance, and there is no second half.
    """
    if scale == 1:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | Sequence[torch.Generator] | None
) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: (B, V).
        sampling: how.
        generator: source of one number a row, by which the distribution function is inverted.

    Returns:
        ids (B,) int64 and their log-probabilities (B,) float32 under the distribution they were drawn from (for
        temperature 0, under the unfiltered one).
    """
    logits, names = logits.float(), None
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        log_probs = logits.log_softmax(-1)
    else:
        logits = logits if sampling.temperature == 1 else logits / sampling.temperature
        candidates = _candidates(logits, sampling)
        if candidates is not None:  # the rest has no probability; the order of ids is kept
            names, by_id = candidates[1].sort(-1)
            logits = candidates[0].gather(-1, by_id)
        log_probs = logits.log_softmax(-1)
        ids = invert(log_probs.exp(), uniform(len(logits), generator, logits.device))
    log_prob = log_probs.gather(-1, ids[:, None])[:, 0]
    return (ids if names is None else names.gather(-1, ids[:, None])[:, 0]), log_prob
