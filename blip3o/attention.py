"""One setting for every part with attention: which kernel it asks for, and what stands against it on a machine.

`auto` takes the fastest kernel that runs, `flash` a flash kernel or none, `sdpa` torch's function
`scaled_dot_product_attention`, `eager` plain matrix products. What is stored is the setting and never the kernel, which
is looked for when a part runs: where its weights are then, and in which numbers it computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import nn

from blip3o.part import Part

AttentionSetting = Literal["auto", "flash", "sdpa", "eager"]
KERNELS = ("flash", "sdpa", "eager")
"""The settings that name a kernel, the fastest first."""

LARGEST_HEAD = 256
"""Widest attention head of the flash kernels, both of the flash-attn package and of torch."""

LEAST_CAPABILITY = (8, 0)
"""CUDA compute capability from which on flash kernels run: Ampere."""


class HasAttention(Part):
    """A part whose attention kernel can be chosen; `attention` is an argument of its constructor.

    Attributes:
        attention: the setting.
        automatic: kernels that `auto` tries, in this order; the last always runs.
    """

    attention: AttentionSetting
    automatic: ClassVar[tuple[str, ...]] = KERNELS

    @abstractmethod
    def attention_obstacles(self, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
        """What stands against each of `KERNELS`, in words; nothing where it runs.

        Args:
            device: where the weights are.
            dtype: of the numbers that it computes with.
        """

    @abstractmethod
    def attention_words(self, kernel: str, device: torch.device) -> str:
        """The library's name of one of `KERNELS`."""

    def attention_kernel(
        self, device: torch.device, dtype: torch.dtype, attention: AttentionSetting | None = None
    ) -> str:
        """Which of `KERNELS` runs.

        Args:
            device: where the weights are.
            dtype: of the numbers that it computes with.
            attention: a setting in place of the part's own.

        Raises:
            ValueError: if the setting names a kernel that does not run; it says why.
        """
        setting = self.attention if attention is None else check_attention(attention)
        obstacles = self.attention_obstacles(device, dtype)
        if setting == "auto":
            return next(kernel for kernel in self.automatic if not obstacles[kernel])
        if obstacles[setting]:
            raise ValueError(
                f"attention ({setting!r}) can not be used by {type(self).__name__} here: {obstacles[setting]}; or set "
                "attention to 'auto', which takes the fastest kernel that runs."
            )
        return setting

    def set_attention(self, attention: AttentionSetting) -> None:
        """Changes the setting, also in `config()`.

        Raises:
            ValueError: if there is no such setting. Whether the kernel runs is seen when the part does.
        """
        self.attention = check_attention(attention)
        if "attention" in self.init_args:  # a class of one's own may state it itself
            self.init_args["attention"] = attention


def check_attention(attention: str | None) -> AttentionSetting:
    """The setting; `auto` in place of None, which model folders of earlier versions hold.

    Raises:
        ValueError: if there is no such setting.
    """
    if attention is None:
        return "auto"
    if attention not in get_args(AttentionSetting):
        raise ValueError(
            f"attention ({attention!r}) must be one of {', '.join(get_args(AttentionSetting))}; 'flash' finds the "
            "installed flash-attn by itself."
        )
    return cast(AttentionSetting, attention)


def set_attention(
    model: nn.Module,
    attention: AttentionSetting,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Gives every part of a model one setting; for one part alone, call its own `set_attention`.

    Args:
        model: whose parts.
        attention: the setting.
        device: where the model will run; what does not run there is refused at once. When it runs if None.
        dtype: in which numbers; when None, a kernel is not refused for them.

    Raises:
        ValueError: if there is no such setting, or a part can not run it; nothing is changed then.
    """
    check_attention(attention)
    parts = [part for part in model.modules() if isinstance(part, HasAttention)]
    if device is not None:
        for part in parts:
            part.attention_kernel(device, dtype or torch.bfloat16, attention)
    for part in parts:
        part.set_attention(attention)


def running_in(part: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a part's weights are, and the numbers that its products are computed with now: autocast's, or its own."""
    weight = next(parameter for parameter in part.parameters() if parameter.is_floating_point())
    kind = weight.device.type
    lowered = kind != "meta" and torch.is_autocast_enabled(kind)
    return weight.device, torch.get_autocast_dtype(kind) if lowered else weight.dtype


def flash_obstacle(device: torch.device, dtype: torch.dtype, head_sizes: Iterable[int], missing: str = "") -> str:
    """What stands against a flash kernel: the device, what is not installed, the heads, or the numbers.

    Args:
        device: where the weights are.
        dtype: of the numbers.
        head_sizes: widths of the attention heads.
        missing: what is not installed and how to get it, if anything.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA device; run it on a GPU"
    if device.type != "cuda":
        return f"the weights are on {device.type}; move them to the GPU"
    if (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        had, needed = (".".join(map(str, one)) for one in (capability, LEAST_CAPABILITY))
        return f"the GPU's compute capability is {had}, and flash kernels need {needed}; use a newer GPU"
    if missing:
        return missing
    if (largest := max(head_sizes, default=0)) > LARGEST_HEAD:
        return f"its heads are {largest} wide, and flash kernels take at most {LARGEST_HEAD}; use narrower heads"
    if dtype not in (torch.float16, torch.bfloat16):
        return (
            f"it computes in {str(dtype).removeprefix('torch.')}, and flash kernels take float16 and bfloat16; load it "
            "with dtype=torch.bfloat16, or train with precision bf16-mixed"
        )
    return ""
