"""Cross-entropy of a linear head over many ids, of which no more than a tile of logits is ever held.

The ids are gone through in tiles. The forward pass keeps the logarithm of each position's sum; the backward pass makes
a tile's logits again, and of them its share of the gradients, which is written where it belongs. Nothing of the size of
positions x ids exists, nor a copy of the head's table in another precision.

Torch's `linear_cross_entropy` (from 2.15 on) cuts the positions instead, so that every piece reads the whole table and
adds to the gradient of all of it. In bfloat16 on a CPU that takes two and a half times as long as this and as much
memory as all logits at once, and under autocast its loss has only the eight bits of bfloat16; so it is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from blip3o.ar.logits import LogitShape

PLAIN = LogitShape()

ON_CPU, ELSEWHERE = 2**22, 2**28
"""Logits of a tile: few enough for a processor's caches, and enough to keep an accelerator busy."""

FEWEST_IDS = 1024
"""Ids of a tile, at the least."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ids: tuple[int, int],
    *,
    bias: Tensor | None = None,
    shape: LogitShape = PLAIN,
    tile_logits: int | None = None,
) -> Tensor:
    """The cross-entropy of next tokens, summed over positions.

    Products are in autocast's precision, or else the table's; softmax and sums are in float32 at least.

    Args:
        hidden: (P, H) last hidden states.
        weight: (V, H) the head's whole table.
        targets: (P,) int64 in the range `ids`.
        ids: range of the ids that compete.
        bias: (V,) of the head, or None.
        shape: what the model does to the head's products.
        tile_logits: logits that are held at once; what suits the device when None.

    Returns:
        A scalar in float32, or float64 where the table is; 0 of no position.
    """
    kind = hidden.device.type
    lowered = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if lowered else weight.dtype
    held = (ON_CPU if kind == "cpu" else ELSEWHERE) if tile_logits is None else tile_logits
    fewest = FEWEST_IDS if tile_logits is None else 1
    tiles = _Tiles(*ids, max(fewest, held // max(1, len(hidden))), shape, dtype)
    return _CrossEntropy.apply(hidden, weight, bias, targets, tiles)


@dataclass(frozen=True)
class _Tiles:
    """A range of ids in pieces.

    Attributes:
        first: id.
        last: id, not included.
        size: ids of a piece.
        shape: of the logits.
        dtype: of the products.
    """

    first: int
    last: int
    size: int
    shape: LogitShape
    dtype: torch.dtype

    @property
    def alone(self) -> bool:
        """Whether there is but one piece."""
        return self.last - self.first <= self.size

    def __iter__(self) -> Iterator[slice]:
        for start in range(self.first, self.last, self.size):
            yield slice(start, min(start + self.size, self.last))

    def logits(self, hidden: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        """(P, ids) in float32 at least, of states (P, H) and rows of the table, both in the products' precision."""
        products = F.linear(hidden, table, None if bias is None else bias.to(self.dtype))
        return self.shape(products.to(torch.promote_types(self.dtype, torch.float32)))


def _places(targets: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Whether each target is one of a tile's ids, (P,) bool, and its place there, (P, 1), any where it is not."""
    places = targets - tile.start
    return (places >= 0) & (targets < tile.stop), places.clamp(0, tile.stop - tile.start - 1)[:, None]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tiles: _Tiles
    ) -> Tensor:
        exact = torch.promote_types(tiles.dtype, torch.float32)
        log_sum = hidden.new_full((len(hidden),), -torch.inf, dtype=exact)
        reached = torch.zeros_like(log_sum)
        kept: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            lowered = hidden.to(tiles.dtype)
            for tile in tiles:
                logits = tiles.logits(lowered, weight[tile].to(tiles.dtype), None if bias is None else bias[tile])
                inside, places = _places(targets, tile)
                reached = torch.where(inside, logits.gather(1, places)[:, 0], reached)
                log_sum = torch.logaddexp(log_sum, logits.logsumexp(1))
                if tiles.alone:
                    kept = [logits]
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum, *kept)
        ctx.tiles = tiles
        return (log_sum - reached).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum, *kept = ctx.saved_tensors
        tiles: _Tiles = ctx.tiles
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype) if for_hidden else None
        grad_weight = _room(weight, tiles) if for_weight else None
        grad_bias = torch.zeros_like(bias) if for_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            lowered = hidden.to(tiles.dtype)
            for tile in tiles:
                table = weight[tile].to(tiles.dtype)
                logits = kept[0] if kept else tiles.logits(lowered, table, None if bias is None else bias[tile])
                inside, places = _places(targets, tile)
                slope = (logits - log_sum[:, None]).exp_()
                slope.scatter_add_(1, places, -inside[:, None].to(slope.dtype))
                slope *= tiles.shape.slope(logits)
                products = slope.to(tiles.dtype)
                # The outer gradient comes last and in full precision: lowered first, it would be off for all alike.
                if grad_hidden is not None:
                    grad_hidden += products @ table
                if grad_weight is not None:
                    grad_weight[tile].copy_(products.T @ lowered).mul_(outer)
                if grad_bias is not None:
                    grad_bias[tile].copy_(slope.sum(0)).mul_(outer)
        grad_hidden = None if grad_hidden is None else grad_hidden.mul_(outer).to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _room(weight: Tensor, tiles: _Tiles) -> Tensor:
    """For the gradient of a table (V, H): zero outside the tiles, which are filled later."""
    room = torch.empty_like(weight)
    room[: tiles.first].zero_()
    room[tiles.last :].zero_()
    return room
