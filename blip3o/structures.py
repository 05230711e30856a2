"""The few dataclasses that pass between parts, with their shapes.

Letters: B rows, T sequence positions, N image tokens, L condition positions, H hidden width of the AR model,
D feature width of the tokenizer, C condition width of the diffusion head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no cross-entropy (the value PyTorch's losses skip)."""


@dataclass(frozen=True)
class ImageTokens:
    """What a tokenizer reads from images.

    Attributes:
        ids: (B, N) int64 in [0, codebook_size).
        features: (B, N, D) quantised features, carrying a straight-through gradient in training.
        grid: rows and columns of the token grid; N = rows * columns.
        loss: scalar commitment loss of the quantiser, zero for those that have none.
    """

    ids: Tensor
    features: Tensor
    grid: tuple[int, int]
    loss: Tensor


@dataclass(frozen=True)
class Sequences:
    """A left-padded batch of token sequences.

    Attributes:
        input_ids: (B, T) int64 over the extended vocabulary.
        attention_mask: (B, T) bool, False at padding.
        labels: (B, T) int64, the id itself where it is supervised and `IGNORE_INDEX` elsewhere. Not shifted.
        condition_mask: (B, T) bool, True at the positions whose hidden states condition the diffusion head.
        reference_mask: (B, T) bool, True at the tokens of reference images.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    condition_mask: Tensor
    reference_mask: Tensor

    def to(self, device: torch.device | str) -> Sequences:
        """The same sequences on another device."""
        return Sequences(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class AROutput:
    """A forward pass of an AR backbone.

    Attributes:
        hidden: (B, T, H) last hidden states, after the final norm.
        logits: (B, T, V) over the ids that were asked for, or None when none were.
    """

    hidden: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Image tokens that an AR backbone decoded, all from one pass.

    Attributes:
        ids: (B, N) int64 codes in [0, codebook_size).
        hidden: (B, 1 + N, H) hidden states at the scale token and at every image token.
        log_probs: (B, N) log-probability of each id under the distribution it was drawn from.
    """

    ids: Tensor
    hidden: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class ARStates:
    """What a bridge may read from the AR model.

    Attributes:
        hidden: (B, L, H) hidden states at the condition positions.
        mask: (B, L) bool, False where a position does not count; None where all count.
    """

    hidden: Tensor
    mask: Tensor | None = None

    def null(self) -> ARStates:
        """The unconditional states: zeros before the bridge, whose biases and norm still act on them."""
        return replace(self, hidden=torch.zeros_like(self.hidden))

    def drop(self, dropped: Tensor) -> ARStates:
        """The same states with the rows of `dropped` (B,) bool set to null."""
        return replace(self, hidden=self.hidden.masked_fill(dropped[:, None, None], 0.0))


@dataclass(frozen=True)
class Conditioning:
    """What a diffusion head is conditioned on.

    Attributes:
        embeds: (B, L, C).
        mask: (B, L) bool, False where a position does not count; None where all count.
    """

    embeds: Tensor
    mask: Tensor | None = None

    def followed_by(self, embeds: Tensor) -> Conditioning:
        """The condition with more positions (B, M, C) at its end."""
        mask = self.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(embeds.shape[:2])], dim=1)
        return Conditioning(torch.cat([self.embeds, embeds], dim=1), mask)

    def stacked_on(self, other: Conditioning) -> Conditioning:
        """The rows of `other`, then these; both have the same positions."""
        masks = None
        if self.mask is not None or other.mask is not None:
            masks = torch.cat([one.full_mask() for one in (other, self)])
        return Conditioning(torch.cat([other.embeds, self.embeds]), masks)

    def full_mask(self) -> Tensor:
        """The mask (B, L), all True where there is none."""
        return self.embeds.new_ones(self.embeds.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        """The chosen rows."""
        return Conditioning(self.embeds[rows], None if self.mask is None else self.mask[rows])
