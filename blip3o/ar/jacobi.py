"""Several image tokens a pass, without loss: speculative Jacobi decoding (Teng et al. 2024, arXiv 2410.01699).

A pass reads the last token of a row and drafts of the next ones, each drawn from a known distribution, and gives the
distributions of the tokens that follow each. Drafts are kept, from the first on, as speculative sampling says, so
that the tokens have the distribution of sequential decoding. Behind the first one that is not, all are drawn anew from
the distributions of this pass, made by nearly the right tokens; and where no pass has been yet, from the last of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.ar.decoding import guided, invert, uniform
from blip3o.ar.speculative import count_kept, distribution, replace_draft
from blip3o.ar.start import Start, Wanted
from blip3o.ar.steps import stack_layers
from blip3o.ar.windows import WindowReader
from blip3o.structures import Generated


def decode_jacobi(
    run: Callable[..., Any], logits: Callable[[Tensor], Tensor], start: Start, wanted: Wanted
) -> Generated:
    """Decodes windows of tokens; a row goes on from its own last token, and leaves when it is done.

    A row takes as many numbers of its generator in each of its passes, whatever the other rows do.

    Args:
        run: the decoder without its head, called with inputs, mask and cache.
        logits: over the image ids, of last hidden states (..., H).
        start: the prompts that were read, into a cache whose layers keep all keys and values.
        wanted: what to decode.
    """
    num_tokens, sampling, layers = wanted.num_tokens, wanted.sampling, wanted.layers
    most = min(sampling.jacobi_window, num_tokens) - 1
    reader = WindowReader(run, start, keep_layers=bool(layers))
    done = _Done(start, num_tokens, stack_layers(start.states, layers, start.rows, -1))
    rows = torch.arange(start.rows, device=start.hidden.device)
    at = torch.zeros_like(rows)  # tokens that a row has read
    hidden, every = start.hidden[:, None], done.first_layers
    drafts, drafted = rows.new_zeros((len(rows), 0)), None
    while True:
        probabilities, log_probs = distribution(guided(logits(hidden), wanted.guidance_scale), sampling)
        window = probabilities.shape[1]
        numbers = _numbers(rows, start.rows, 2 * most + 1, wanted)
        old = torch.zeros_like(probabilities) if drafted is None else F.pad(drafted, (0, 0, 0, 1))
        kept = count_kept(probabilities[:, :-1], old[:, :-1], drafts, numbers[:, : window - 1])
        kept = torch.minimum(kept, num_tokens - at)
        own = torch.arange(len(rows), device=rows.device)
        new = replace_draft(probabilities[own, kept], old[own, kept], numbers[:, most])
        ids = F.pad(drafts, (0, 1)).scatter(1, kept[:, None], new[:, None])
        done.add(rows, at, kept + 1, hidden, every, ids, log_probs.gather(-1, ids[..., None])[..., 0])

        at = at + kept + 1
        left = (at <= num_tokens).nonzero()[:, 0]
        if len(left) == 0:
            return done.generated()
        reader.keep(left, kept[left] + 1)
        # Nothing is drafted past the N-th token, but for rows that are nearer to it than others, which ignore it.
        room = min(most, int(num_tokens - at[left].min()))
        source = (kept[left, None] + 1 + torch.arange(room, device=rows.device)).clamp(max=window - 1)
        drafted = probabilities[left[:, None], source]
        drafts = invert(drafted, numbers[left, most + 1 : most + 1 + room])
        rows, at = rows[left], at[left]
        read = torch.cat([new[left, None], drafts], dim=1)
        after = (at[:, None] + torch.arange(room + 1, device=rows.device)).clamp(max=num_tokens)
        output = reader.read(read + wanted.first_code, after)
        hidden = output.last_hidden_state
        every = stack_layers(output.hidden_states if layers else None, layers, len(rows), 0)
        done.num_forwards[rows] += 1


def _numbers(rows: Tensor, all_rows: int, count: int, wanted: Wanted) -> Tensor:
    """Numbers (R, count) in [0, 1) for the rows that are left; none is drawn where the most likely ids are taken."""
    generator = wanted.generator
    if wanted.sampling.temperature == 0:
        return torch.zeros((len(rows), count), device=rows.device)
    if isinstance(generator, Sequence) and len(rows) < all_rows:
        generator = [generator[row] for row in rows.tolist()]
    return uniform(len(rows), generator, rows.device, (count,))


class _Done:
    """What is known of all rows.

    Attributes:
        first_layers: (B, K, 1, H) states of the layers asked for at the prompts' last tokens, or None.
        num_forwards: (B,) int64 passes of each row.
    """

    def __init__(self, start: Start, num_tokens: int, first_layers: Tensor | None) -> None:
        rows, hidden = start.rows, start.hidden
        self.first_layers = first_layers
        self.num_forwards = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
        self._num_tokens = num_tokens
        self._ids = self.num_forwards.new_zeros((rows, num_tokens))
        self._log_probs = hidden.new_zeros((rows, num_tokens), dtype=torch.float32)
        self._hidden = hidden.new_zeros((rows, 1 + num_tokens, hidden.shape[-1]))
        self._layers = None
        if first_layers is not None:
            self._layers = first_layers.new_zeros((*first_layers.shape[:2], 1 + num_tokens, first_layers.shape[-1]))

    def add(
        self,
        rows: Tensor,
        at: Tensor,
        count: Tensor,
        hidden: Tensor,
        layers: Tensor | None,
        ids: Tensor,
        log_probs: Tensor,
    ) -> None:
        """Adds the first `count` (R,) states of a window, and the ids that follow them, from place `at` (R,) on.

        Args:
            rows: (R,) which rows these are.
            at: (R,) tokens before the window's first state, which is that of token `at`, or of the prompt for 0.
            count: (R,) at least 1.
            hidden: (R or 2 R, W, H).
            layers: (R, K, W, H) or None.
            ids: (R, W); those past the N-th token are left out.
            log_probs: (R, W).
        """
        row, column = (torch.arange(ids.shape[1], device=ids.device) < count[:, None]).nonzero(as_tuple=True)
        to, place = rows[row], at[row] + column
        self._hidden[to, place] = hidden[row, column]
        if self._layers is not None and layers is not None:
            self._layers[to, :, place] = layers[row, :, column]
        drawn = place < self._num_tokens
        row, column, to, place = (index[drawn] for index in (row, column, to, place))
        self._ids[to, place] = ids[row, column]
        self._log_probs[to, place] = log_probs[row, column]

    def generated(self) -> Generated:
        """Everything, once all rows are done."""
        return Generated(self._ids, self._hidden, self._log_probs, layers=self._layers, num_forwards=self.num_forwards)
