"""Training an image codec: the autoencoder whose latents the diffusion head works on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip3o.diffusion.base import Codec
from blip3o.training.base import Optimization, TrainingModule


class CodecModule(TrainingModule):
    """Trains a codec to reproduce its input: L1 plus mean squared error on pixels in [-1, 1].

    Args:
        codec: the codec.
        optimization: optimizer and schedule.
        l1_weight: weight of the absolute error.
        mse_weight: weight of the squared error.
        num_calibration: images whose latents set the codec's normalisation when training ends.
    """

    def __init__(
        self,
        codec: Codec,
        optimization: Optimization = Optimization(),
        l1_weight: float = 1.0,
        mse_weight: float = 1.0,
        num_calibration: int = 512,
    ) -> None:
        super().__init__(optimization)
        self.codec = codec
        self.l1_weight = l1_weight
        self.mse_weight = mse_weight
        self.num_calibration = num_calibration

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] through the codec and back, not clamped."""
        return self.codec.decode_raw(self.codec.encode_raw(images))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Reconstruction loss."""
        error = self.reconstruct(batch["image"]).float() - batch["image"]
        l1, mse = error.abs().mean(), error.square().mean()
        loss = self.l1_weight * l1 + self.mse_weight * mse
        self.log_dict({"train/loss": loss, "train/l1": l1, "train/mse": mse}, prog_bar=True)
        return loss

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Mean absolute error, and the reconstructions for callbacks to score."""
        images = self.reconstruct(batch["image"]).clamp(-1, 1)
        self.log(f"{stage}/l1", (images - batch["image"]).abs().mean(), batch_size=len(images), sync_dist=True)
        return images

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measures the latents' mean and spread, which become part of the codec."""
        images = self.trainer.datamodule.images(self.num_calibration)
        self.codec.calibrate(images.to(self.device))
