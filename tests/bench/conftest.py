"""A machine that is measured in a moment."""

from __future__ import annotations

from functools import partial

import pytest

from blip3o.bench import generate
from blip3o.bench.machine import measure_machine


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of small matrices in place of the machine's limits."""
    monkeypatch.setattr(generate, "measure_machine", partial(measure_machine, megabytes=1, side=64))
