"""The contracts of the diffusion family: `Codec`, `Denoiser` and `DiffusionHead`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from blip3o.diffusion.guidance import Interval
from blip3o.part import Part
from blip3o.structures import Conditioning

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for the batch, one a row (each row then draws what it would draw alone), or torch's default."""


def check_generators(generator: Generators, rows: int) -> None:
    """Raises a ValueError if a list of generators does not hold one a row."""
    if isinstance(generator, Sequence) and len(generator) != rows:
        raise ValueError(f"generator holds {len(generator)} generators for {rows} rows; give one, or one a row.")


def draw_noise(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers of a shape; a list of generators draws each row from its own."""
    check_generators(generator, shape[0])
    source = list(generator) if isinstance(generator, Sequence) else generator
    return randn_tensor(tuple(shape), generator=source, device=like.device, dtype=like.dtype)


class Codec(Part):
    """Maps images to the latents a denoiser works on, and back.

    Latents are normalised to about zero mean and unit variance: `(raw - shift_factor) * scaling_factor`. Both
    factors are buffers, so that a codec trained here saves what `calibrate` measured.

    Args:
        scaling_factor: what raw latents are multiplied with.
        shift_factor: what is subtracted from raw latents first.
    """

    scaling_factor: Tensor
    shift_factor: Tensor

    def __init__(self, scaling_factor: float = 1.0, shift_factor: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("scaling_factor", torch.tensor(float(scaling_factor)))
        self.register_buffer("shift_factor", torch.tensor(float(shift_factor)))

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    @abstractmethod
    def spatial_factor(self) -> int:
        """Pixels per latent position along each side."""

    @abstractmethod
    def encode_raw(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to raw latents (B, c, H / f, W / f), deterministic."""

    @abstractmethod
    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents (B, c, h, w) to images (B, 3, h * f, w * f), about [-1, 1], not clamped."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to normalised latents (B, c, H / f, W / f), in the codec's own precision.

        Raises:
            ValueError: if the sides are no multiple of the spatial factor.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(s % self.spatial_factor for s in images.shape[2:]):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; the codec takes (B, 3, H, W) with H and W multiples of "
                f"{self.spatial_factor}."
            )
        return (self.encode_raw(self.in_own_dtype(images)) - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, c, h, w) to images (B, 3, H, W) in [-1, 1]."""
        raw = self.in_own_dtype(latents) / self.scaling_factor + self.shift_factor
        return self.decode_raw(raw).clamp(-1, 1)

    def enable_tiling(self) -> None:
        """From now on, large pictures are encoded and decoded in overlapping tiles, for less memory; seams may show.

        Raises:
            ValueError: if the codec can not.
        """
        raise ValueError(f"{type(self).__name__} works on no tiles; leave tiling off.")

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Sets both factors so that the latents of `images` (B, 3, H, W) have zero mean and unit variance."""
        self.follow(self.encode_raw(self.in_own_dtype(images)))

    @torch.no_grad()
    def follow(self, raw: Tensor, share: float = 1.0) -> None:
        """Moves both factors by `share`, in (0, 1], of the way to what raw latents (B, c, h, w) ask for."""
        self.shift_factor.lerp_(raw.float().mean(), share)
        self.scaling_factor.lerp_(1 / raw.float().std(), share)


class Denoiser(Part):
    """A network that predicts, from noisy latents, a time and a condition, what its head's objective asks for."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents it takes and returns."""

    @property
    @abstractmethod
    def cond_dim(self) -> int:
        """Width C of the condition it takes."""

    def check_latents(self, channels: int, height: int, width: int) -> None:
        """Raises a ValueError where it can not take latents (B, channels, height, width)."""
        if channels != self.latent_channels:
            raise ValueError(
                f"the denoiser works on {self.latent_channels} latent channels, but the codec gives {channels}; set "
                f"the denoiser's to {channels}, or take another codec."
            )

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """Blocks in their order of which `step_cache` may skip all but the first; none where it can not be used.

        Each takes `hidden_states`, among others, and returns the next ones.
        """
        return ()

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where it can not take such a condition.

        Args:
            num_positions: of the condition; None stands for any number.
            grid: rows and columns of the image tokens that the positions are; None where they are something else.
        """

    def enable_gradient_checkpointing(self) -> None:
        """From now on training computes activations again in the backward pass, in place of keeping them.

        Raises:
            ValueError: if the denoiser can not.
        """
        raise ValueError(
            f"gradient_checkpointing can not be used with {type(self).__name__}, which has none; set it to false."
        )

    @abstractmethod
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts what the objective asks for.

        Args:
            latents: (B, c, h, w), noisy.
            sigma: (B,) noise levels in [0, 1], as the objective counts them; 1 is noise alone.
            conditioning: embeds (B, L, C); positions that its mask does not count must not matter.

        Returns:
            The prediction (B, c, h, w). With flow matching it is the velocity noise - x0.
        """


class DiffusionHead(Part):
    """Renders images from a condition, and says how well it would have rendered given ones.

    Attributes:
        reads: what it renders from: the bridge's `condition`; or the image `tokens`, as the tokenizer itself decodes
            them. In the second case `sample` has one more argument, `pictures` (B, 3, h, w) in [-1, 1].
    """

    reads: Literal["condition", "tokens"] = "condition"

    @property
    @abstractmethod
    def cond_dim(self) -> int:
        """Width C of the condition; a bridge is built with it as its output width."""

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where it can not take such a condition, see `Denoiser.check_condition`."""

    image_size: int | None = None
    """Side in pixels of the square images it renders, where it has one size."""

    def check_rendering(self, *, guidance_interval: Interval | None = None, step_cache: float | None = None) -> None:
        """Raises a ValueError where `sample` can not do these; a head whose `sample` takes them overrides this.

        Args:
            guidance_interval: as in `sample`.
            step_cache: as in `sample`.
        """
        for name, value in (("guidance_interval", guidance_interval), ("step_cache", step_cache or None)):
            if value is not None:
                raise ValueError(f"{name} ({value}) is nothing that {type(self).__name__} can do; leave it out.")

    takes_latents: bool = False
    """Whether `loss` takes latents in place of images, so that encoded data can train it."""

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of what it renders of a picture of these sides: its square, unless it can more.

        Raises:
            ValueError: if it has no size of its own.
        """
        if self.image_size is None:
            raise ValueError(f"{type(self).__name__} names no image_size and can take no pictures; leave image out.")
        return self.image_size, self.image_size

    def check_references(self, num_references: int) -> None:
        """Raises a ValueError where it can not take so many reference images a row."""

    @property
    def latent_channels(self) -> int:
        """Channels c of the latents; a bridge that reads references' latents is built with it as its input width.

        Raises:
            ValueError: if the head does not say.
        """
        raise ValueError(f"{type(self).__name__} does not say its latent_channels; define the property.")

    @abstractmethod
    def loss(
        self,
        images: Tensor | None,
        conditioning: Conditioning,
        references: Tensor | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Training losses (B,), one a row, the same for images and for the latents that `encode` makes of them.

        Args:
            images: (B, 3, H, W) in [-1, 1]; None where `latents` take their place.
            conditioning: embeds (B, L, C).
            references: (B, R, 3, H, W) in [-1, 1], or None; a head that can not use them raises a ValueError.
            generator: source of the noise and the timesteps.
            latents: (B, c, h, w) normalised latents, for a head that `takes_latents`; others need no such argument.
            hidden: (B,) bool, rows whose references it must not see; given with `references` alone.
        """

    @abstractmethod
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
    ) -> Tensor:
        """Normalised latents (B, c, h, w) for a condition.

        Args:
            conditioning: embeds (B, L, C).
            num_inference_steps: calls of the denoiser, at least 1.
            guidance_scale: classifier-free guidance, at least 0; 1 turns it off.
            negative: the unconditional condition; needed unless `guidance_scale` is 1.
            generator: source of the initial noise.
            latents: initial noise (B, c, h, w), instead of drawing it.
            references: (B, R, 3, H, W) in [-1, 1], or None.
            image_guidance_scale: guidance by the references alone, at least 0; `guidance_scale` is then that of the
                text. None leaves it to the negative condition what is guided by (`blip3o.diffusion.guidance`).
            size: height and width in pixels, such as `size_for` gives; the head's own square when None.
            guidance_interval: noise levels (low, high) outside which the condition alone is followed; all when None.
            step_cache: how much the denoiser's first block may differ from the last full step for its other blocks to
                be skipped (`blip3o.diffusion.step_cache`); 0 or None skips none.

        Raises:
            ValueError: on a value out of range, a missing `negative`, or an `image_guidance_scale` without references.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to normalised latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to images (B, 3, H, W) in [-1, 1]."""
