"""Attention kernels of transformers' models: which one runs, and switching to it."""

from __future__ import annotations

from functools import cached_property

import torch
from transformers import PreTrainedModel
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_greater_or_equal,
)

from blip3o.attention import AttentionSetting, HasAttention, check_attention, flash_obstacle, running_in

LEAST_FLASH_2 = "2.6.0"
"""Version of flash-attn that caps scores where a model (Gemma 2) asks for it; older ones leave the cap out unsaid."""

HOPPER = 9
"""Major compute capability that FlashAttention-3 is made for."""


class TransformersAttention(HasAttention):
    """The setting of a part around a model of transformers, its vision tower included.

    Attributes:
        lm: the model.
    """

    lm: PreTrainedModel

    def attention_obstacles(self, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
        """What stands against each kernel: what transformers' class lacks, or the machine."""
        name = type(self.lm).__name__
        flash = f"transformers' {name} has no flash attention; choose another model"
        has_flash, has_sdpa = self._supported
        if has_flash:
            missing = ""
            if torch.cuda.is_available() and device.type == "cuda" and flash_package(self.lm, device) is None:
                missing = f"the flash-attn package is missing or older than {LEAST_FLASH_2}; install flash-attn"
            flash = flash_obstacle(device, dtype, self._head_sizes, missing)
        sdpa = "" if has_sdpa else f"transformers' {name} has none; set attention to 'eager'"
        return {"flash": flash, "sdpa": sdpa, "eager": ""}

    def attention_words(self, kernel: str, device: torch.device) -> str:
        """Transformers' name of a kernel."""
        return str(flash_package(self.lm, device)) if kernel == "flash" else kernel

    def use_attention(self) -> None:
        """Switches the model to the kernel that the setting asks for here and now; does nothing without weights.

        Raises:
            ValueError: if it does not run, or transformers can not switch the model.
        """
        device, dtype = running_in(self)
        if device.type == "meta":
            return
        name = self.attention_words(self.attention_kernel(device, dtype), device)
        before = self.lm.config._attn_implementation
        if name == before:
            return
        self.lm.set_attn_implementation(name)
        if self.lm.config._attn_implementation != name:
            raise ValueError(
                f"attention ({self.attention!r}) is {name} here, but transformers can not switch "
                f"{type(self.lm).__name__} from {before} to it; choose another model or setting."
            )

    def start_attention(self, attention: AttentionSetting | None) -> None:
        """Takes the setting of a new part; raises a ValueError where transformers' class lacks its kernel."""
        self.attention = check_attention(attention)
        if self.attention == "sdpa":
            self.attention_kernel(torch.device("cpu"), torch.float32)

    @cached_property
    def _supported(self) -> tuple[bool, bool]:
        """Whether the model and those within it say that they have flash attention and `sdpa`."""
        models = [one for one in self.lm.modules() if isinstance(one, PreTrainedModel)]
        return all(one._supports_flash_attn for one in models), all(one._supports_sdpa for one in models)

    @cached_property
    def _head_sizes(self) -> frozenset[int]:
        """Widths of the attention heads, as transformers' attention layers keep them."""
        layers = (one for one in self.lm.modules() if "Attention" in type(one).__name__)
        return frozenset(one.head_dim for one in layers if isinstance(getattr(one, "head_dim", None), int))


def first_kernel(attention: AttentionSetting | None) -> str | None:
    """What a model is built with, before it is known where it runs; None leaves transformers' own default."""
    return "eager" if check_attention(attention) == "eager" else None


def flash_package(lm: PreTrainedModel, device: torch.device) -> str | None:
    """Transformers' name of the fastest installed FlashAttention for a model on a CUDA device; None if there is none.

    FlashAttention-3 knows no dropout of the attention weights.
    """
    drops = float(getattr(lm.config.get_text_config(), "attention_dropout", 0.0) or 0.0) > 0
    if not drops and is_flash_attn_3_available() and torch.cuda.get_device_capability(device)[0] == HOPPER:
        return "flash_attention_3"
    if is_flash_attn_2_available() and is_flash_attn_greater_or_equal(LEAST_FLASH_2):
        return "flash_attention_2"
    return None
