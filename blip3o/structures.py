"""The few dataclasses that pass between parts, with their shapes.

Letters: B rows, T sequence positions, N image tokens, L condition positions, K layers of the AR model that were asked
for, H its hidden width, D feature width of the tokenizer, C condition width of the diffusion head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no cross-entropy (the value PyTorch's losses skip)."""

MAX_REFERENCES = 4
"""Most reference images of an edit, as in the released code."""


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

    def next_tokens(self) -> tuple[Tensor, Tensor]:
        """What is learnt: positions (B, T) bool whose next token is supervised, and the ids (P,) of these tokens.

        A padding position predicts nothing: the first token of a row is given, whatever the padding.
        """
        following = F.pad(self.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        at = (following != IGNORE_INDEX) & self.attention_mask
        return at, following[at]

    def to(self, device: torch.device | str) -> Sequences:
        """The same sequences on another device."""
        return Sequences(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class AROutput:
    """A forward pass of an AR backbone.

    Attributes:
        hidden: (B, T, H) last hidden states, after the final norm.
        logits: (B, T, V) over the ids that were asked for, or None when none were.
        layers: (B, K, T, H) hidden states after the layers that were asked for, or None when none were.
    """

    hidden: Tensor
    logits: Tensor | None = None
    layers: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Image tokens that an AR backbone decoded, all from one pass.

    Where a bridge reads prompts or learned queries there are none to decode: N is then 0, and the states are those at
    the L positions that the bridge reads.

    Attributes:
        ids: (B, N) int64 codes in [0, codebook_size).
        hidden: (B, 1 + N, H) hidden states at the scale token and at every image token; or (B, L, H).
        log_probs: (B, N) log-probability of each id under the distribution it was drawn from.
        mask: (B, L) bool, False at positions of `hidden` that are padding; None where none is.
        layers: (B, K, 1 + N, H) or (B, K, L, H) states after the layers that were asked for, or None.
        num_forwards: (B,) int64, passes in which tokens of the row were read, the prompt's not counted; None where none
            were decoded.
    """

    ids: Tensor
    hidden: Tensor
    log_probs: Tensor
    mask: Tensor | None = None
    layers: Tensor | None = None
    num_forwards: Tensor | None = None


@dataclass(frozen=True)
class ARStates:
    """What a bridge may read.

    Attributes:
        hidden: (B, L, H) the AR model's last hidden states at the condition positions; or (B, N, D), the tokenizer's
            features of the image tokens, for a bridge that reads those.
        mask: (B, L) bool, False where a position does not count; None where all count.
        layers: (B, K, L, H) hidden states after the layers that the bridge asks for, or None when it asks for none.
    """

    hidden: Tensor
    mask: Tensor | None = None
    layers: Tensor | None = None

    def null(self) -> ARStates:
        """The unconditional states: zeros before the bridge, whose biases and norm still act on them."""
        layers = None if self.layers is None else torch.zeros_like(self.layers)
        return replace(self, hidden=torch.zeros_like(self.hidden), layers=layers)

    def drop(self, dropped: Tensor) -> ARStates:
        """The same states with the rows of `dropped` (B,) bool set to null."""
        layers = None if self.layers is None else self.layers.masked_fill(dropped[:, None, None, None], 0.0)
        return replace(self, hidden=self.hidden.masked_fill(dropped[:, None, None], 0.0), layers=layers)

    def __getitem__(self, rows: Tensor | slice) -> ARStates:
        """The chosen rows."""
        mask, layers = (None if t is None else t[rows] for t in (self.mask, self.layers))
        return ARStates(self.hidden[rows], mask, layers)


@dataclass(frozen=True)
class Conditioning:
    """What a diffusion head is conditioned on.

    Attributes:
        embeds: (B, L, C).
        mask: (B, L) bool, False where a position does not count; None where all count.
        num_appended: how many positions at the end came from elsewhere than the bridge (`followed_by`).
    """

    embeds: Tensor
    mask: Tensor | None = None
    num_appended: int = 0

    def followed_by(self, embeds: Tensor) -> Conditioning:
        """The condition with more positions (B, M, C) at its end."""
        mask = self.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(embeds.shape[:2])], dim=1)
        return Conditioning(torch.cat([self.embeds, embeds], dim=1), mask, self.num_appended + embeds.shape[1])

    def with_appended_of(self, other: Conditioning) -> Conditioning:
        """The condition with the positions at the end of `other`, as many, in place of its own that came there."""
        assert self.num_appended == other.num_appended
        kept, rest = (one.embeds.shape[1] - one.num_appended for one in (self, other))
        return replace(self, embeds=torch.cat([self.embeds[:, :kept], other.embeds[:, rest:]], dim=1))

    def stacked_on(self, other: Conditioning) -> Conditioning:
        """The rows of `other`, then these; both have the same positions."""
        masks = None
        if self.mask is not None or other.mask is not None:
            masks = torch.cat([one.full_mask() for one in (other, self)])
        return replace(self, embeds=torch.cat([other.embeds, self.embeds]), mask=masks)

    def full_mask(self) -> Tensor:
        """The mask (B, L), all True where there is none."""
        return self.embeds.new_ones(self.embeds.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        """The chosen rows."""
        return replace(self, embeds=self.embeds[rows], mask=None if self.mask is None else self.mask[rows])


@dataclass(frozen=True)
class ModelLosses:
    """Losses of a batch, not yet reduced over it.

    Attributes:
        cross_entropy: scalar, summed over the supervised tokens.
        num_tokens: scalar, how many tokens that were.
        flow: (R,) the diffusion head's losses of the rows it was trained on.
    """

    cross_entropy: Tensor
    num_tokens: Tensor
    flow: Tensor


@dataclass(frozen=True)
class Rendered:
    """Generated images with what they came from.

    Attributes:
        tokens: the decoded image tokens.
        conditioning: what the diffusion head was conditioned on.
        latents: (B, c, h, w) normalised latents.
    """

    tokens: Generated
    conditioning: Conditioning
    latents: Tensor
