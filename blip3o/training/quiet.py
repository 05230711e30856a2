"""Keeping what Lightning says beside the point off the console."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "lightning.pytorch.utilities.rank_zero"
_TIP = "💡"
_WARNINGS = (
    ".*args parameter is intended to run from within Python.*",
    ".*LeafSpec.*is deprecated.*",
    r"Found \d+ module\(s\) in eval mode.*",  # frozen parts are meant to be
    "Using ModelCheckpoint with manual optimization.*",  # it saves what a step left, as we want it to
    "Mismatch dtype between input and weight.*",  # RMS norms under autocast: torch computes them in float32 then
)


@contextmanager
def quiet(*, everything: bool = False) -> Iterator[None]:
    """Within the block, hides Lightning's tips for other products and warnings about its own inner workings.

    Args:
        everything: also hide its notes on devices and progress, and all warnings.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return not (everything or record.getMessage().startswith(_TIP))

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            if everything:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(wanted)
