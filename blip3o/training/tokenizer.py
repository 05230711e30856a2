"""Training an image tokenizer: reconstruction, and alignment of its tokens with a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3o.tokenizers.base import TrainableTokenizer
from blip3o.tokenizers.usage import codebook_usage, count_codes
from blip3o.training.base import Optimization, TrainingModule
from blip3o.training.freezing import freeze


class TokenizerModule(TrainingModule):
    """Trains a tokenizer on reconstruction, commitment and, if asked, agreement with a teacher's description.

    TA-Tok's tokens are easy for a language model because they are read from features that a text-aligned teacher
    gave (SigLIP2). `align_weight` does the same for any teacher: a small network must tell the teacher's description
    of a cell (`descriptors` (B, cells, F) of the batch) from that cell's token alone.

    How much of the codebook is used (usage and perplexity) is logged for every batch in training, and over all of
    the set in validation and test.

    Args:
        tokenizer: any tokenizer that reconstructs: `ConvTokenizer`, `TimmTokenizer`, `DiffusersVQ`, `TATok`, or one's
            own on `blip3o.tokenizers.TrainableTokenizer`.
        optimization: optimizer and schedule.
        reconstruction_weight: weight of the error of what the tokenizer reads (absolute plus squared).
        align_weight: weight of the squared error of the descriptors; 0 for none.
        align_dim: width F of the descriptors.
        cosine_weight: weight of 1 minus the cosine, at each cell, of reconstructed features and what they should be;
            for tokenizers that decode to features.
        trainable: patterns of parameter names in the tokenizer (`fnmatch`) that train, the rest being frozen; None
            leaves it as it was built. TA-Tok needs it, to freeze the tower whose features it reconstructs:
            `["encode_task.*", "bottleneck_*", "quantizer.*", "decode*"]`.

    Raises:
        ValueError: if the tokenizer can not be trained by reconstruction, if `cosine_weight` is given to one that
            decodes to pixels, or if a pattern matches nothing; in training, if descriptors are asked for but missing
            or of another shape.
    """

    def __init__(
        self,
        tokenizer: TrainableTokenizer,
        optimization: Optimization = Optimization(),
        reconstruction_weight: float = 1.0,
        align_weight: float = 0.0,
        align_dim: int = 16,
        cosine_weight: float = 0.0,
        trainable: list[str] | None = None,
    ) -> None:
        super().__init__(optimization)
        if not isinstance(tokenizer, TrainableTokenizer):
            raise ValueError(
                f"tokenizer ({type(tokenizer).__name__}) can not be trained by reconstruction; build it on "
                "blip3o.tokenizers.TrainableTokenizer, with `reads` and `decode_features`."
            )
        if cosine_weight and tokenizer.decodes_to != "features":
            raise ValueError(
                f"cosine_weight ({cosine_weight}) needs a tokenizer that decodes to features, and "
                f"{type(tokenizer).__name__} decodes to pixels; set it to 0."
            )
        if trainable is not None:
            freeze(tokenizer, trainable)
        self.tokenizer = tokenizer
        self.reconstruction_weight = reconstruction_weight
        self.align_weight = align_weight
        self.cosine_weight = cosine_weight
        self._counts = torch.zeros(tokenizer.codebook_size, dtype=torch.long)
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
        decoded, target = self.tokenizer.decode_features(tokens.features), self.tokenizer.reads(images)
        error = decoded - target
        reconstruction = error.abs().mean() + error.square().mean()
        losses = {"reconstruction": reconstruction, "commitment": tokens.loss}
        loss = self.reconstruction_weight * reconstruction + tokens.loss
        if self.cosine_weight:
            losses["cosine"] = 1 - F.cosine_similarity(decoded, target, dim=-1).mean()
            loss = loss + self.cosine_weight * losses["cosine"]
        if self.teacher_head is not None:
            told = self.teacher_head(self.tokenizer.cells(tokens.features))
            losses["align"] = (told - self._descriptors(batch, told.shape)).square().sum(-1).mean()
            loss = loss + self.align_weight * losses["align"]
        used = codebook_usage(count_codes(tokens.ids, self.tokenizer.codebook_size))
        losses |= used._asdict()
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True)
        return loss

    def _descriptors(self, batch: dict[str, Any], shape: torch.Size) -> Tensor:
        """The teacher's descriptions (B, cells, F) of a batch."""
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
        """Mean absolute error, and what was decoded: the reconstructions for callbacks to score, or features."""
        images = batch["image"]
        ids = self.tokenizer.encode(images).ids
        decoded = self.tokenizer.decode(ids)
        target = images if self.tokenizer.decodes_to == "pixels" else self.tokenizer.reads(images)
        self.log(f"{stage}/l1", (decoded - target).abs().mean(), batch_size=len(images), sync_dist=True)
        self._counts = self._counts.to(ids.device) + count_codes(ids, self.tokenizer.codebook_size)
        return decoded

    def on_validation_epoch_start(self) -> None:
        """Counts codes anew."""
        self._counts = torch.zeros_like(self._counts)

    def on_validation_epoch_end(self) -> None:
        """Logs usage and perplexity over the whole set, of all processes."""
        self._log_usage("val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Logs usage and perplexity over the whole set, of all processes."""
        self._log_usage("test")

    def _log_usage(self, stage: str) -> None:
        counts = self.trainer.strategy.reduce(self._counts.to(self.device), reduce_op="sum")
        assert isinstance(counts, Tensor)
        self.log_dict({f"{stage}/{name}": value for name, value in codebook_usage(counts)._asdict().items()})
