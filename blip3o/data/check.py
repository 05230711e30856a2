"""`blip3o data check`: reads the data of an experiment before anyone trains on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from jsonargparse import ArgumentError
from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from rich.console import Console
from rich.table import Table

from blip3o.data.failures import Tally
from blip3o.data.images import ImageDataModule
from blip3o.data.mixture import Weighted
from blip3o.data.pictures import Limits, Unreadable
from blip3o.data.reader import SourceReader
from blip3o.data.sources.base import decode
from blip3o.images import check_output, contact_sheet, save_png
from blip3o.pixels import cropped, to_uint8

_SHOWN = 12  # rows of each source on the sheet
_TILE = 128


@dataclass
class SourceReport:
    """What was read of one source.

    Attributes:
        name: the source's label.
        weight: its weight in the mixture, None outside one.
        tally: rows read, and those that can not be used.
        sizes: width and height of every target picture.
        words: length of every caption in words.
        references: how many rows have how many references.
        samples: the first pictures for the sheet, references before the target, with their captions.
        error: why reading ended, where it ended too early.
    """

    name: str
    weight: float | None
    tally: Tally
    sizes: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    references: Counter[int] = field(default_factory=Counter)
    samples: list[tuple[list[np.ndarray], str]] = field(default_factory=list)
    error: str | None = None

    def add(self, caption: str, size: tuple[int, int] | None, references: int) -> None:
        """Counts a usable row."""
        self.tally.good()
        self.words.append(len(caption.split()))
        self.references[references] += 1
        if size is not None:
            self.sizes.append(size)


def load_data(config: Path) -> LightningDataModule:
    """The data module of an experiment's YAML.

    Raises:
        ValueError: if there is no such file or section, or it does not build.
    """
    try:
        whole = yaml.safe_load(config.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"config ({config}) can not be read: {error}") from error
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), dict):
        raise ValueError(f"config ({config}) has no section 'data' with a class_path; add one.")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        return parser.instantiate(parser.parse_object({"data": whole["data"]})).data
    except ArgumentError as error:
        raise ValueError(f"config ({config}): {error}") from error


def check_data(config: Path, output: Path | None = None, num_rows: int = 200) -> list[SourceReport]:
    """Reads rows of every source of a YAML's data, prints a table of them and writes a sheet of samples.

    Args:
        config: an experiment's YAML.
        output: PNG of the first samples, references before their targets; none when None.
        num_rows: rows to read of each source, in the order of training, of at most one pass.

    Raises:
        ValueError: if a source fails: it can not be read, has no usable row, or more unusable ones than its limits
            bear. Nothing is written then.
    """
    if num_rows < 1:
        raise ValueError(f"num ({num_rows}) must be at least 1.")
    if output is not None:
        check_output(output)
    data = load_data(config)
    reports = list(_reports(data, num_rows))
    _print(reports)
    if faults := [fault for report in reports if (fault := _fault(report))]:
        raise ValueError("\n".join(faults))
    if output is not None:
        save_png(_sheet(reports), output, {"config": str(config), "sources": [report.name for report in reports]})
        Console().print(f"written to {output}", highlight=False, soft_wrap=True)
    return reports


def _reports(data: LightningDataModule, num_rows: int) -> Iterator[SourceReport]:
    if not isinstance(data, ImageDataModule):
        yield _read_batches(data, num_rows)
        return
    for number, entry in enumerate(data.sources):
        yield _read_source(entry, (data.seed, number), data.shuffle_buffer, num_rows)
    for entry in data.val_sources or []:
        yield _read_source(entry, (data.seed, 0), 1, min(num_rows, data.num_val), "validation: ")


def _read_source(entry: Weighted, seed: Sequence[int], buffer: int, num_rows: int, prefix: str = "") -> SourceReport:
    name = prefix + entry.source.label
    report = SourceReport(name, entry.weight, Tally(name, entry.limits))
    try:
        reader = SourceReader(entry.source, seed=seed, buffer=buffer)
        while report.tally.rows < num_rows:
            row = reader.next()
            if reader.passes:
                break
            try:
                record = decode(row, entry.limits)
            except Unreadable as error:
                report.tally.bad(row.key, str(error), judge=False)
                continue
            report.add(record.caption, record.image.size, len(record.references))
            if len(report.samples) < _SHOWN:
                report.samples.append(([*map(_tile, record.references), _tile(record.image)], record.caption))
    except ValueError as error:
        report.error = str(error)
    return report


def _read_batches(data: LightningDataModule, num_rows: int) -> SourceReport:
    """Rows of any other data module, from its training batches."""
    name = type(data).__name__
    report = SourceReport(name, None, Tally(name, Limits()))
    for batch in data.train_dataloader():
        captions = batch.get("caption", batch.get("prompt"))
        if captions is None:
            raise ValueError(f"{name} gives batches of {sorted(batch)}; there is no 'caption' or 'prompt' to check.")
        images = batch.get("image")
        for row, caption in enumerate(captions):
            size = None if images is None else (images.shape[3], images.shape[2])
            report.add(caption, size, 0)
            if images is not None and len(report.samples) < _SHOWN:
                pixels = Image.fromarray(to_uint8(images[row : row + 1])[0])
                report.samples.append(([_tile(pixels)], caption))
            if report.tally.rows == num_rows:
                return report
    return report


def _fault(report: SourceReport) -> str | None:
    """Why a source must not be trained on."""
    if report.error is not None:
        return report.error
    if not report.words:
        return f"{report.name}: none of {report.tally.rows} rows can be used.\n{report.tally.listed()}"
    try:
        report.tally.judge()
    except ValueError as error:
        return str(error)
    return None


def _tile(image: Image.Image) -> np.ndarray:
    """A picture's central square, (128, 128, 3) uint8."""
    return to_uint8(cropped(image, _TILE)[None])[0]


def _sheet(reports: Sequence[SourceReport]) -> Image.Image:
    """Samples of every source, each row's references before its target, on white."""
    samples = [sample for report in reports for sample in report.samples]
    if not samples:
        raise ValueError("output was asked for, but the data holds no pictures; leave it out.")
    widest = max(len(tiles) for tiles, _ in samples)
    white = np.full((_TILE, _TILE, 3), 255, dtype=np.uint8)
    pictures = [np.concatenate([*tiles, *[white] * (widest - len(tiles))], axis=1) for tiles, _ in samples]
    captions = [caption if len(caption) <= 200 else caption[:199] + "..." for _, caption in samples]
    return contact_sheet(np.stack(pictures), captions, columns=max(1, 8 // widest))


def _print(reports: Sequence[SourceReport]) -> None:
    """A line for each source, and its failures."""
    table = Table(title="data")
    for column in ("source", "weight", "rows read", "failed", "references", "shortest side", "caption words"):
        table.add_column(column, justify="left" if column == "source" else "right", overflow="fold")
    for report in reports:
        references = ", ".join(f"{rows} with {count}" for count, rows in sorted(report.references.items()))
        cells = [
            "" if report.weight is None else f"{report.weight:g}",
            str(report.tally.rows),
            str(report.tally.failed),
            references if set(report.references) - {0} else "none",
            _range([min(size) for size in report.sizes]),
            _range(report.words),
        ]
        table.add_row(report.name, *cells)
    console = Console()
    console.print(table)
    for report in reports:
        if report.tally.failed:
            console.print(f"skipped of {report.name}:\n{report.tally.listed()}", markup=False, highlight=False)


def _range(values: Sequence[int]) -> str:
    """Least, median and most."""
    return f"{min(values)} / {median(values):g} / {max(values)}" if values else "-"
