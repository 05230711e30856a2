"""Training an image tokenizer: reconstruction, and alignment of its tokens with a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blip3o.tokenizers.conv import ConvTokenizer
from blip3o.training.base import Optimization, TrainingModule


class TokenizerModule(TrainingModule):
    """Trains a tokenizer on reconstruction, commitment and, if asked, agreement with a teacher's description.

    TA-Tok's tokens are easy for a language model because they are read from features that a text-aligned teacher
    gave (SigLIP2). `align_weight` does the same for any teacher: a small network must tell the teacher's description
    of a cell (`descriptors` (B, N, F) of the batch) from that cell's token alone.

    Args:
        tokenizer: the tokenizer.
        optimization: optimizer and schedule.
        reconstruction_weight: weight of the error of what the tokenizer reads (absolute plus squared).
        align_weight: weight of the squared error of the descriptors; 0 for none.
        align_dim: width F of the descriptors.

    Raises:
        ValueError: in training, if descriptors are asked for but missing or of another shape.
    """

    def __init__(
        self,
        tokenizer: ConvTokenizer,
        optimization: Optimization = Optimization(),
        reconstruction_weight: float = 1.0,
        align_weight: float = 0.0,
        align_dim: int = 16,
    ) -> None:
        super().__init__(optimization)
        self.tokenizer = tokenizer
        self.reconstruction_weight = reconstruction_weight
        self.align_weight = align_weight
        width = 128
        self.teacher_head = (
            nn.Sequential(nn.Linear(tokenizer.feature_dim, width), nn.GELU(), nn.Linear(width, align_dim))
            if align_weight
            else None
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the losses; logs each, and how much of the codebook the batch uses."""
        images = batch["image"]
        tokens = self.tokenizer.encode(images)
        error = self.tokenizer.decode_features(tokens.features) - self.tokenizer.reads(images)
        reconstruction = error.abs().mean() + error.square().mean()
        losses = {"reconstruction": reconstruction, "commitment": tokens.loss}
        loss = self.reconstruction_weight * reconstruction + tokens.loss
        if self.teacher_head is not None:
            told = self.teacher_head(tokens.features)
            losses["align"] = (told - self._descriptors(batch, told.shape)).square().sum(-1).mean()
            loss = loss + self.align_weight * losses["align"]
        shares = torch.bincount(tokens.ids.flatten(), minlength=self.tokenizer.codebook_size) / tokens.ids.numel()
        losses["perplexity"] = torch.special.entr(shares).sum().exp()
        losses["usage"] = (shares > 0).float().mean()
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True)
        return loss

    def _descriptors(self, batch: dict[str, Any], shape: torch.Size) -> Tensor:
        """The teacher's descriptions (B, N, F) of a batch."""
        if "descriptors" not in batch:
            raise ValueError(
                f"align_weight ({self.align_weight}) needs rows with `descriptors`; set the data's `describe` to the "
                f"tokenizer's grid ({self.tokenizer.grid_size}), or align_weight to 0."
            )
        descriptors: Tensor = batch["descriptors"]
        if descriptors.shape != shape:
            raise ValueError(
                f"descriptors have shape {tuple(descriptors.shape)} instead of {tuple(shape)}; set align_dim to "
                f"{descriptors.shape[-1]} and the data's `describe` to {self.tokenizer.grid_size}."
            )
        return descriptors

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Mean absolute error, and the reconstructions for callbacks to score."""
        images = self.tokenizer.decode(self.tokenizer.encode(batch["image"]).ids)
        self.log(f"{stage}/l1", (images - batch["image"]).abs().mean(), batch_size=len(images), sync_dist=True)
        return images
