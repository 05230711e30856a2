"""Decoding a token a pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blip3o.ar.decoding import draw, guided
from blip3o.ar.start import Start, Wanted
from blip3o.ar.steps import Step, stack_layers
from blip3o.structures import Generated


def decode_sequentially(step: Step, logits: Callable[[Tensor], Tensor], start: Start, wanted: Wanted) -> Generated:
    """Draws a token a row, reads it, and so on.

    Args:
        step: reads tokens from where `start` ends.
        logits: over the image ids, of last hidden states (B or 2 B, H).
        start: the prompts that were read.
        wanted: what to decode.
    """
    rows, hidden, layers = start.rows, start.hidden, wanted.layers
    states, ids, log_probs = [hidden[:rows]], [], []
    kept = [stack_layers(start.states, layers, rows, -1)]
    for _ in range(wanted.num_tokens):
        drawn, log_prob = draw(guided(logits(hidden), wanted.guidance_scale), wanted.sampling, wanted.generator)
        ids.append(drawn)
        log_probs.append(log_prob)
        hidden, every = step.advance((drawn + wanted.first_code).repeat(start.copies))
        states.append(hidden[:rows])
        kept.append(stack_layers(every, layers, rows, -1))
    return Generated(
        torch.stack(ids, 1),
        torch.stack(states, 1),
        torch.stack(log_probs, 1),
        layers=torch.cat([one for one in kept if one is not None], 2) if layers else None,
        num_forwards=torch.full_like(ids[0], wanted.num_tokens),
    )
