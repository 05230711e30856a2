"""What is hidden from the diffusion head in training, so that guidance has the branches it extrapolates from.

One number u in [0, 1) of each row, pure in the seed and the row's index, decides (InstructPix2Pix, arXiv 2211.09800,
section 3.2.1, whose 5 % of each kind are `condition_dropout` 0.1 and `reference_dropout` 0.1). With shares c of dropped
conditions and r of hidden references, and b = min(c, r) / 2 of both:

| u | text | references |
|---|---|---|
| [0, c - b) | dropped | seen |
| [c - b, c) | dropped | hidden |
| [c, c - b + r) | read | hidden |
| the rest | read | seen |

The text is the condition from the AR model, which also knows of the references; dropped, it is zeros before the bridge.
Hidden references are zeros in place of their latents in noise space and of their projected latents after the condition.
The AR model is told of them all the same, and cross-entropy is as it was. Rows of text to image have none to hide.

Without reference dropout (r = 0) training is as published: u < c drops the text and the latents after the condition
together, and those in noise space stay. That is the negative condition of sampling without `image_guidance_scale`. A
model that has references in both places and was trained with r > 0 has not seen it: sample it with that scale.
"""

from __future__ import annotations

from torch import Tensor

from blip3o.training.randomness import row_uniform


def check_dropout(condition_dropout: float, reference_dropout: float) -> None:
    """Raises a ValueError unless both are shares and leave room for each other."""
    if not 0 <= reference_dropout <= 1:
        raise ValueError(f"reference_dropout ({reference_dropout}) must lie in [0, 1]; it is a share of rows.")
    least, most = sorted((condition_dropout, reference_dropout))
    if most + least / 2 > 1:
        raise ValueError(
            f"reference_dropout ({reference_dropout}) and condition_dropout ({condition_dropout}) need a share of "
            f"{most + least / 2:.3g} of the rows, half of the smaller one losing both; lower one of them."
        )


def dropped_rows(
    seed: int, index: Tensor, condition_dropout: float, reference_dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Rows of `index` (B,) whose condition is dropped, and those whose references are hidden: (B,) bool each.

    The second is None without reference dropout.
    """
    drawn = row_uniform(seed, index, "condition")
    dropped = drawn < condition_dropout
    if reference_dropout == 0:
        return dropped, None
    first = condition_dropout - min(condition_dropout, reference_dropout) / 2
    return dropped, (drawn >= first) & (drawn < first + reference_dropout)
