"""`GenerationDefaults`: the settings of a generation, as a model stores them and as a call may change them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from blip3o.ar.base import Decoding, Sampling
from blip3o.diffusion.guidance import Interval, check_interval
from blip3o.diffusion.step_cache import check_threshold


@dataclass(frozen=True)
class GenerationDefaults:
    """What a call uses where it says nothing; stored with a model. The values here are the published ones.

    Attributes:
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance of the diffusion head; 1 turns it off.
        token_guidance_scale: classifier-free guidance of the AR model; 1 turns it off.
        temperature: of the image tokens.
        top_k: most likely image tokens kept; 0 keeps all.
        top_p: probability mass of the image tokens kept.
        image_guidance_scale: guidance of the diffusion head by the reference images of an edit; None leaves the
            published way, see `Blip3oPipeline.__call__`.
        guidance_interval: noise levels (low, high) at which the diffusion head is guided; None guides at all.
        step_cache: how much a denoising step may differ from the last full one to skip blocks; None or 0 skips none.
        decoding: `sequential`, an image token a pass; or `jacobi`, several, of the same distribution.
        jacobi_window: positions that a pass of `jacobi` reads of an image, at least 2.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 2.0
    token_guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 1200
    top_p: float = 0.95
    image_guidance_scale: float | None = None
    guidance_interval: Interval | None = None
    step_cache: float | None = None
    decoding: Decoding = "sequential"
    jacobi_window: int = 16

    def __post_init__(self) -> None:
        """Takes the list of two numbers that JSON and YAML make of an interval."""
        interval = vars(self)["guidance_interval"]
        if isinstance(interval, list):
            object.__setattr__(self, "guidance_interval", tuple(interval))

    @classmethod
    def stored(cls, settings: Mapping[str, Any], where: str | Path) -> GenerationDefaults:
        """The settings that `where` holds.

        Raises:
            ValueError: if it holds unknown ones.
        """
        unknown = sorted(settings.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"generation in {where} holds unknown settings {unknown}; remove them.")
        return cls(**settings)

    def given(self) -> dict[str, Any]:
        """The settings that are not None, as they are stored and recorded.

        They are plain numbers and strings, and a list of two for an interval.
        """
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in plain.items() if value is not None}

    def updated(self, **settings: Any) -> GenerationDefaults:
        """These settings with others in place of some; where one is None, it stays."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    @property
    def sampling(self) -> Sampling:
        """How image tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.decoding, self.jacobi_window)

    def writing(self) -> dict[str, Any]:
        """The arguments of `Blip3oNext.write`."""
        return {"sampling": self.sampling, "token_guidance_scale": self.token_guidance_scale}

    def rendering(self) -> dict[str, Any]:
        """The arguments of `blip3o.rendering.render`, but for those about reference images."""
        names = ("num_inference_steps", "guidance_scale", "guidance_interval", "step_cache")
        return {name: getattr(self, name) for name in names}


PUBLISHED_SETTINGS = GenerationDefaults()


def check_settings(settings: GenerationDefaults) -> None:
    """Raises a ValueError where a setting is out of range."""
    check_whole("num_inference_steps", settings.num_inference_steps, 1)
    check_whole("top_k", settings.top_k, 0)
    check_whole("jacobi_window", settings.jacobi_window, 2)
    for name in ("guidance_scale", "image_guidance_scale", "token_guidance_scale", "temperature", "top_p"):
        value = getattr(settings, name)
        if value is None and name == "image_guidance_scale":
            continue
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} ({value!r}) must be a finite number; leave it out for the default.")
        if "guidance" in name and value < 0:
            raise ValueError(f"{name} ({value}) must be at least 0; 1 turns guidance off.")
    _ = settings.sampling  # which checks itself
    check_interval(settings.guidance_interval)
    check_threshold(settings.step_cache)


def check_whole(name: str, value: object, least: int) -> None:
    """Raises a ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"{name} ({value!r}) must be a whole number of at least {least}; leave it out for the default."
        )
