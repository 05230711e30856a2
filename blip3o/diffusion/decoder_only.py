"""The baseline without diffusion: what the tokenizer's own decoder makes of the image tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blip3o.diffusion.base import DiffusionHead, Generators
from blip3o.diffusion.guidance import Interval
from blip3o.structures import Conditioning


class TokenDecoderHead(DiffusionHead):
    """Shows the tokenizer's decoding of the image tokens; it learns nothing, and its latents are the pixels.

    What a diffusion head adds is what it does better than this one. Only a tokenizer that decodes to pixels can be
    shown. A model still builds its bridge, to `cond_dim` and frozen, and never uses what it gives.

    Args:
        image_size: side in pixels of the square images it renders; pictures of another size are resampled to it.
        cond_dim: width of the unused condition; small, so that an unused bridge stays small.

    Raises:
        ValueError: if a size is not positive.
    """

    reads = "tokens"

    def __init__(self, *, image_size: int, cond_dim: int = 8) -> None:
        super().__init__()
        for name, value in (("image_size", image_size), ("cond_dim", cond_dim)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1.")
        self.image_size: int = image_size
        self._cond_dim = cond_dim

    @property
    def cond_dim(self) -> int:
        """Width of the condition, which is not used."""
        return self._cond_dim

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: red, green, blue."""
        return 3

    def loss(
        self,
        images: Tensor | None,
        conditioning: Conditioning,
        references: Tensor | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Zeros (B,), without a gradient: there is nothing to train.

        Raises:
            ValueError: if references are given, or latents in place of images.
        """
        _refuse(references)
        if images is None:
            raise ValueError(
                f"images is None, but {type(self).__name__} has no codec and needs pixels; train on pictures, not on "
                "encoded latents."
            )
        return images.new_zeros(len(images))

    def sample(
        self,
        conditioning: Conditioning,
        *,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
        negative: Conditioning | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        references: Tensor | None = None,
        image_guidance_scale: float | None = None,
        size: tuple[int, int] | None = None,
        guidance_interval: Interval | None = None,
        step_cache: float | None = None,
        pictures: Tensor | None = None,
    ) -> Tensor:
        """The pictures (B, 3, image_size, image_size), whatever the condition, the steps and the guidance.

        Args:
            conditioning: not used.
            num_inference_steps: not used.
            guidance_scale: not used.
            negative: not used.
            generator: not used.
            latents: must be None: there is no noise to start from.
            references: must be None.
            image_guidance_scale: must be None.
            size: the head's own square, or None.
            guidance_interval: must be None.
            step_cache: must be None.
            pictures: (B, 3, h, w) in [-1, 1], the tokenizer's decoding of the image tokens.

        Raises:
            ValueError: if `pictures` is missing, or something is given that must be None.
        """
        _refuse(references)
        if image_guidance_scale is not None:
            raise ValueError(f"image_guidance_scale ({image_guidance_scale}) needs references, which this head lacks.")
        self.check_rendering(guidance_interval=guidance_interval, step_cache=step_cache)
        if size not in (None, (self.image_size, self.image_size)):
            raise ValueError(f"size ({size}) must be {self.image_size} x {self.image_size}; leave it out.")
        if latents is not None:
            raise ValueError(f"latents were given, but {type(self).__name__} starts from no noise; leave them out.")
        if pictures is None:
            raise ValueError(f"pictures is missing; {type(self).__name__} shows what the tokenizer decodes.")
        return self.encode(pictures)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) in [-1, 1] at this head's size (B, 3, image_size, image_size)."""
        if images.shape[2:] == (self.image_size, self.image_size):
            return images
        size = (self.image_size, self.image_size)
        return F.interpolate(images.float(), size, mode="bicubic", antialias=True).to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """The latents themselves, within [-1, 1]."""
        return latents.clamp(-1, 1)


def _refuse(references: Tensor | None) -> None:
    if references is not None:
        raise ValueError("references were given, but this head conditions on none; pass references=None.")
