"""What a judge has scored so far, kept as JSON Lines that survive a stop at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from blip3o.ablation.files import read_json, write_json
from blip3o.evaluation.edits import EditBenchmark, EditItem
from blip3o.evaluation.judges.base import Judge

_WANTED = ("image", "image_sha256", "instruction", "group", "judge_version", "scores", "failure")


def judge_folder(root: Path, judge: Judge) -> Path:
    """The folder of a judge's scores below that of the edited pictures: its name made fit for files, and a hash."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", judge.id).strip("-.")[:60]
    return root / "judges" / f"{name}-{hashlib.sha256(judge.id.encode()).hexdigest()[:8]}"


class Judgments:
    """The lines of `results.jsonl` in a judge's folder.

    Args:
        folder: the judge's.
        benchmark: whose items are judged.
        judge: who judges.

    Raises:
        ValueError: if the folder's scores are of another benchmark, or were asked for with other words or settings, or
            a line is damaged.
    """

    def __init__(self, folder: Path, benchmark: EditBenchmark, judge: Judge) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self.record = {
            "judge": judge.id,
            "settings": judge.settings,
            "benchmark": benchmark.name,
            "prompts": benchmark.prompts_digest(),
        }
        self._check()
        self._rows: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(self._lines(), start=1):
            row = self._read(line, number)
            self._rows[row["image"]] = row

    @property
    def num_judged(self) -> int:
        """How many items have scores."""
        return sum(row["scores"] is not None for row in self._rows.values())

    def holds(self, item: EditItem, image_sha256: str) -> bool:
        """Whether an item has scores that are those of its picture as it is now."""
        row = self._rows.get(item.output)
        if row is None or row["scores"] is None:
            return False
        return (row["image_sha256"], row["instruction"], row["group"]) == (image_sha256, item.instruction, item.group)

    def row(self, item: EditItem) -> dict[str, Any]:
        """The last line of an item, its fields as the benchmark has them now."""
        return {**self._rows[item.output], **item.fields}

    def begin(self) -> None:
        """Readies the folder for new lines; a summary of the old ones goes."""
        write_json(self.folder / "judge.json", self.record)
        (self.folder / "summary.json").unlink(missing_ok=True)
        if self.path.exists():
            whole = sum(len(line) + 1 for line in self._lines())
            if whole != self.path.stat().st_size:  # a run that was killed left a part of a line
                os.truncate(self.path, whole)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._rows[row["image"]] = row

    def _check(self) -> None:
        path = self.folder / "judge.json"
        known = json.loads(json.dumps(self.record))
        earlier = read_json(path) if path.exists() else known
        if earlier != known:
            others = [name for name in known if not isinstance(earlier, dict) or earlier.get(name) != known[name]]
            raise ValueError(
                f"{self.folder} holds scores that differ in {', '.join(others)} from those asked for now, and the two "
                "do not mix; move the folder away."
            )

    def _lines(self) -> list[bytes]:
        """The whole lines; what follows the last line's end is a part of one."""
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path} line {number} is no JSON: {error}; take the line out.") from error
        if not isinstance(row, dict) or any(name not in row for name in _WANTED):
            raise ValueError(f"{self.path} line {number} lacks one of {', '.join(_WANTED)}; take the line out.")
        return row
