"""Batches that mix text to image with edits: one pass of the model for each number of references.

Every mean is taken over the whole batch afterwards, so a token or a row weighs the same whichever pass it was in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blip3o.model import Blip3oNext
from blip3o.prompts import Supervise
from blip3o.structures import ModelLosses

Batch = dict[str, Any]


def by_references(batch: Batch) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The rows of each number of references, with their references at both sizes.

    Args:
        batch: `index` (B,), and where there are edits `num_references` (B,), `references` (B, R, 3, H, W) and, at the
            image tokenizer's size, `token_references` (B, R, 3, h, w), each row's own before the padding.

    Yields:
        rows: (b,) int64 in ascending order.
        references: the arguments `references` and `token_references` of the model, none for text to image.
    """
    counts = batch.get("num_references")
    if counts is None:
        yield torch.arange(len(batch["index"]), device=batch["index"].device), {}
        return
    for count in counts.unique().tolist():
        rows = torch.nonzero(counts == count)[:, 0]
        names = ("references", "token_references") if count else ()
        yield rows, {name: batch[name][rows, :count] for name in names if name in batch}


def mixed_losses(
    model: Blip3oNext,
    batch: Batch,
    captions: Sequence[str],
    *,
    supervise: Supervise,
    rendered_rows: Tensor,
    dropped: Tensor | None = None,
    hidden_references: Tensor | None = None,
    packing: bool = False,
    generator: Sequence[torch.Generator],
) -> ModelLosses:
    """`Blip3oNext.losses` of a batch that may hold edits.

    Args:
        model: the composed model.
        batch: `index`, `image`, perhaps `token_image`, and what `by_references` reads. Encoded rows hold `image_ids`
            and `latents`, which are used in place of the pictures.
        captions: B captions or instructions.
        supervise: where cross-entropy is taken.
        rendered_rows: (R,) int64, ascending, rows that train the diffusion head.
        dropped: (R,) bool, rows whose condition is replaced by the null condition.
        hidden_references: (R,) bool, rows whose references, if any, the diffusion head does not see.
        packing: read the rows of a pass end to end, without padding.
        generator: one for each of the R rows.

    Returns:
        Sums over the whole batch, and the losses of the R rows in their order.
    """
    parts, order = [], []
    for rows, references in by_references(batch):
        chosen = torch.nonzero(torch.isin(rendered_rows, rows))[:, 0]
        order.append(chosen)
        losses = model.losses(
            _chosen(batch, "image", rows),
            [captions[row] for row in rows.tolist()],
            token_images=_chosen(batch, "token_image", rows),
            image_ids=_chosen(batch, "image_ids", rows),
            latents=_chosen(batch, "latents", rows),
            **references,
            supervise=supervise,
            rendered_rows=torch.searchsorted(rows, rendered_rows[chosen]),
            dropped=None if dropped is None else dropped[chosen],
            hidden_references=None if hidden_references is None else hidden_references[chosen],
            packing=packing,
            generator=[generator[number] for number in chosen.tolist()],
        )
        parts.append(losses)
    cross_entropy = torch.stack([part.cross_entropy for part in parts]).sum()
    if "num_references" in batch:
        cross_entropy = cross_entropy + _nothing_of(model)
    return ModelLosses(
        cross_entropy=cross_entropy,
        num_tokens=torch.stack([part.num_tokens for part in parts]).sum(),
        flow=torch.cat([part.flow for part in parts])[torch.cat(order).argsort()],
    )


@torch.no_grad()
def mixed_latents(
    model: Blip3oNext,
    batch: Batch,
    *,
    generator: Sequence[torch.Generator],
    image_guidance_scale: float | None = None,
    **settings: Any,
) -> Tensor:
    """Latents (B, c, h, w) that `Blip3oNext.generate` draws for the `caption`s of a batch that may hold edits.

    Edits alone are guided by their images.
    """
    latents, order = [], []
    for rows, references in by_references(batch):
        numbers = rows.tolist()
        rendered = model.generate(
            [batch["caption"][row] for row in numbers],
            generator=[generator[row] for row in numbers],
            image_guidance_scale=image_guidance_scale if references else None,
            **settings | references,
        )
        latents.append(rendered.latents)
        order.append(rows)
    return torch.cat(latents)[torch.cat(order).argsort()]


def _chosen(batch: Batch, name: str, rows: Tensor) -> Tensor | None:
    """The chosen rows of what a batch may hold."""
    return batch[name][rows] if name in batch else None


def _nothing_of(model: Blip3oNext) -> Tensor:
    """Zero, with a gradient of zero to all that reads references.

    Processes whose batches hold no edit then have the same gradients to exchange as those whose batches do.
    """
    readers: list[nn.Module | None] = [
        model.reference_features,
        model.reference_latents,
        getattr(model.diffusion, "reference_proj", None),
    ]
    parameters = [p for part in readers if part is not None for p in part.parameters() if p.requires_grad]
    return (
        torch.stack([0.0 * p.sum() for p in parameters]).sum() if parameters else torch.zeros((), device=model.device)
    )
