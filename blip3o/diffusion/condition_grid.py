"""Places of a condition that is a grid of image tokens, for denoisers that attend to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3o.diffusion.sinusoids import sincos_2d
from blip3o.structures import Conditioning


class ConditionGrid(nn.Module):
    """2-D sinusoids that tell attention where each position of a condition lies.

    Hidden states of an AR model hardly say which cell of the image their token is of, and a network that attends to
    them has to find out; told by the same sinusoids as its latents carry, it knows from the start.

    Args:
        side: of the grid that the condition's `side**2` positions form, perhaps after one of the scale token, which has
            no place.
        width: of what the places are added to, a multiple of 4.
        strength: factor on the sinusoids, whose root mean square is 0.7.
        latent_side: side of the grid whose sinusoids the latents carry; a cell of another grid over the same picture
            then has those of its centre. The condition's own when None.
        reference_side: side of the grids of reference latents that may follow; they have no place when None.

    Raises:
        ValueError: if `side` is not positive or `width` is no multiple of 4.
    """

    places: Tensor
    reference_places: Tensor | None

    def __init__(
        self,
        side: int,
        width: int,
        *,
        strength: float = 1.0,
        latent_side: int | None = None,
        reference_side: int | None = None,
    ) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"cond_grid ({side}) must be at least 1; None is for a condition that is no grid.")
        if width % 4:
            raise ValueError(f"cond_grid ({side}) needs a width that is a multiple of 4, not {width}; set it to None.")
        self.side = side
        scale = side if latent_side is None else latent_side
        places, reference_places = (
            None if count is None else strength * sincos_2d(count, count, width, spacing=scale / count)
            for count in (side, reference_side)
        )
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("reference_places", reference_places, persistent=False)

    def check(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where a condition is not the grid, with or without the scale token before it.

        Args:
            num_positions: of the condition; None where it varies.
            grid: rows and columns of its image tokens, where they are known.
        """
        cells = self.side**2
        if num_positions not in (cells, cells + 1):
            told = "a number of positions that varies" if num_positions is None else f"{num_positions} positions"
            raise ValueError(
                f"the condition has {told}, but cond_grid ({self.side}) needs {cells}, or one more for the scale "
                "token; set cond_grid to the tokenizer's grid, have the bridge keep one position a token, or set it to "
                "None."
            )
        if grid not in (None, (self.side, self.side)):
            assert grid is not None
            raise ValueError(
                f"the condition is a grid of {grid[0]} x {grid[1]} image tokens, not the {self.side} x {self.side} of "
                f"cond_grid ({self.side}), which would give them wrong places; set cond_grid to the tokenizer's grid "
                "where a cell has one token, or to None."
            )

    def forward(self, conditioning: Conditioning) -> Tensor:
        """Places (L, width) of a condition (B, L, C): the grid's at the end of what the bridge made.

        Positions appended to it have the latents' own places, or none where they are no whole grids of latents.

        Raises:
            ValueError: if there are fewer positions than the grid has.
        """
        num_appended = conditioning.num_appended
        count = conditioning.embeds.shape[1] - num_appended
        if count < len(self.places):
            raise ValueError(
                f"the condition has {count} positions, but cond_grid ({self.side}) needs at least {len(self.places)}; "
                "set cond_grid to the tokenizer's grid, or to None."
            )
        places = F.pad(self.places, (0, 0, count - len(self.places), 0))
        if num_appended == 0:
            return places
        own = self.reference_places
        if own is None or num_appended % len(own):
            return F.pad(places, (0, 0, 0, num_appended))
        return torch.cat([places, own.repeat(num_appended // len(own), 1)])
