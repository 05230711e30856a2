"""Training an image codec: the autoencoder whose latents the diffusion head works on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from blip3o.diffusion.base import Codec
from blip3o.training.base import Optimization, TrainingModule


class CodecModule(TrainingModule):
    """Trains a codec to reproduce its input: L1 plus mean squared error on pixels in [-1, 1].

    The latents' mean and spread, which are part of the codec, are followed all along, so that every checkpoint of a
    run has them.

    Args:
        codec: the codec.
        optimization: optimizer and schedule.
        l1_weight: weight of the absolute error.
        mse_weight: weight of the squared error.
        window: steps over which the latents' mean and spread are averaged.

    Raises:
        ValueError: if `window` is below 1.
    """

    def __init__(
        self,
        codec: Codec,
        optimization: Optimization = Optimization(),
        l1_weight: float = 1.0,
        mse_weight: float = 1.0,
        window: int = 100,
    ) -> None:
        super().__init__(optimization)
        if window < 1:
            raise ValueError(f"window ({window}) must be at least 1.")
        self.codec = codec
        self.l1_weight = l1_weight
        self.mse_weight = mse_weight
        self.window = window

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] through the codec and back, not clamped."""
        return self.codec.decode_raw(self.codec.encode_raw(images))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Reconstruction loss."""
        raw = self.codec.encode_raw(batch["image"])
        self.codec.follow(raw, share=1 / min(self.global_step + 1, self.window))
        error = self.codec.decode_raw(raw).float() - batch["image"]
        l1, mse = error.abs().mean(), error.square().mean()
        loss = self.l1_weight * l1 + self.mse_weight * mse
        self.log_dict({"train/loss": loss, "train/l1": l1, "train/mse": mse}, prog_bar=True)
        return loss

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Mean absolute error, and the reconstructions for callbacks to score."""
        images = self.reconstruct(batch["image"]).clamp(-1, 1)
        self.log(f"{stage}/l1", (images - batch["image"]).abs().mean(), batch_size=len(images), sync_dist=True)
        return images
