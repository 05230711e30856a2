"""Attention kernels of the denoisers, which all call torch's `scaled_dot_product_attention`.

So do diffusers' transformers that are wrapped here. Diffusers' own switch, `set_attention_backend`, changes nothing in
them, for their processors do not ask it; torch's `sdpa_kernel` reaches them all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip3o.attention import HasAttention, flash_obstacle, running_in

WORDS = {
    "flash": "torch's flash kernel",
    "sdpa": "torch's scaled_dot_product_attention",
    "eager": "torch's plain matrix products",
}


class TorchAttention(HasAttention):
    """The setting of a network that calls torch's `scaled_dot_product_attention`.

    `auto` is `sdpa`: torch itself takes a flash kernel wherever device, numbers, heads and masks allow one.

    Attributes:
        always_masked: whether the network gives its attention a mask in every case.
    """

    automatic: ClassVar[tuple[str, ...]] = ("sdpa",)
    always_masked: ClassVar[bool] = False

    @property
    @abstractmethod
    def head_sizes(self) -> Set[int]:
        """Widths of the heads of softmax attention."""

    def attention_obstacles(self, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
        """What stands against each kernel; only flash kernels ask for anything."""
        if self.always_masked:
            return {"flash": "its network always masks its condition, and flash kernels take no mask"} | _NONE
        built = torch.backends.cuda.is_flash_attention_available()
        missing = "" if built else "this torch was built without flash kernels; install another build"
        return {"flash": flash_obstacle(device, dtype, self.head_sizes, missing)} | _NONE

    def attention_words(self, kernel: str, device: torch.device) -> str:
        """What runs, in words."""
        return WORDS[kernel]

    def attention_context(self, mask: Tensor | None) -> AbstractContextManager[object]:
        """The block in which the network runs.

        Args:
            mask: of the condition, if it has one.

        Raises:
            ValueError: if the setting asks for a flash kernel, and there is none or a mask is given.
        """
        if self.attention in ("auto", "sdpa"):
            return nullcontext()
        if self.attention == "eager":
            return sdpa_kernel(SDPBackend.MATH)
        device, dtype = running_in(self)
        if device.type == "meta":
            return nullcontext()
        self.attention_kernel(device, dtype)
        if mask is not None:
            raise ValueError(
                f"attention ({self.attention!r}) can not be used by {type(self).__name__} for a condition with a mask, "
                "which flash kernels do not take; set the denoiser's attention to 'auto', which takes them where none "
                "is given."
            )
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


_NONE = {"sdpa": "", "eager": ""}
