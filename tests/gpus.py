"""A GPU and flash packages as far as the probes see them, for tests of what is chosen; nothing runs on them."""

from __future__ import annotations

import pytest
import torch

from blip3o.ar import attention as of_transformers
from blip3o.diffusion import attention as of_torch

CUDA, BFLOAT16 = torch.device("cuda"), torch.bfloat16


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    capability: tuple[int, int] = (8, 0),
    flash_2: bool = True,
    flash_3: bool = False,
    built: bool = True,
    device: torch.device = CUDA,
    dtype: torch.dtype = BFLOAT16,
) -> None:
    """The probes answer as on a machine with a GPU, and parts say that they run on `device` in `dtype`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(of_transformers, "is_flash_attn_2_available", lambda: flash_2)
    monkeypatch.setattr(of_transformers, "is_flash_attn_greater_or_equal", lambda version: flash_2)
    monkeypatch.setattr(of_transformers, "is_flash_attn_3_available", lambda: flash_3)
    for module in (of_transformers, of_torch):
        monkeypatch.setattr(module, "running_in", lambda part: (device, dtype))
