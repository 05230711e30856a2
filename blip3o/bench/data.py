"""`blip3o bench data`: rows a second of an experiment's data."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

from blip3o.bench.report import Report
from blip3o.bench.timing import Spread
from blip3o.data.check import load_data


def bench_data(config: Path, *, batches: int = 20, repeats: int = 5) -> Report:
    """Reads an experiment's training batches as training does, without training.

    Args:
        config: YAML with a `data` section.
        batches: of every repeat, after as many that warm up.
        repeats: timed repeats.

    Raises:
        ValueError: if the section does not build, or its stream ends too early.
    """
    data = load_data(config)
    data.prepare_data()
    data.setup("fit")
    stream = iter(data.train_dataloader())
    taken, rows = [], 0
    for turn in range(repeats + 1):
        start = time.perf_counter()
        sizes = [len(batch["index"]) for batch in islice(stream, batches)]
        seconds = time.perf_counter() - start
        if len(sizes) < batches:
            raise ValueError(f"batches ({batches}): the data of {config} ended early; ask for fewer.")
        rows = sum(sizes)
        if turn:
            taken.append(seconds)
    return Report(
        title=f"data, {config}",
        settings={"batches": batches, "rows": rows, "repeats": repeats},
        times={"blip3o": {"total": Spread(tuple(taken))}},
        rates={"rows a second": Spread(tuple(rows / seconds for seconds in taken))},
    )
