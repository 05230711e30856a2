"""Advice of transformers that does not hold without a GPU."""

from __future__ import annotations

import logging

import torch

_LOGGER = "transformers.integrations.hub_kernels"
_ADVICE = "is falling back to its reference PyTorch implementation"


def hide_kernel_advice() -> None:
    """Hides the advice to install kernels that run on GPUs alone, where there is none."""
    logging.getLogger(_LOGGER).addFilter(_applies)


def _applies(record: logging.LogRecord) -> bool:
    return _ADVICE not in record.getMessage() or torch.cuda.is_available()
