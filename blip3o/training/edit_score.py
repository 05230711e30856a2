"""Callback: the score of held-out edits of the shapes world, with a sheet of pictures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from blip3o.images import contact_sheet
from blip3o.shapes import ShapesEdit, World, edit_panels, edit_rows, edit_summary, get_world, read_edit, verify_edits
from blip3o.training.image_score import ImageScore


class ShapesEditScore(ImageScore):
    """Verifies the edits that `validation_step` returns; rows without references are left to `ShapesScore`.

    Logs `STAGE/edit/success`, `STAGE/edit/consistency`, `STAGE/edit/both`, `STAGE/edit/mae`, and the first for each
    kind as `STAGE/edit/success/KIND`, for validation and test; writes a sheet with source, result, difference map and
    what was expected to `samples/STAGE-edit-STEP.png` in the trainer's log folder.

    Args:
        world: a world, or the name of one.
        sheet: edits on the sheet, 0 for none.
    """

    def __init__(self, world: str | World = "shapes", sheet: int = 20) -> None:
        super().__init__(sheet)
        self.world = get_world(world)

    def asked(self, batch: dict[str, Any]) -> list[ShapesEdit | None]:
        """The edits; a ValueError where the data holds none."""
        if "edit" not in batch:
            raise ValueError(
                "the data holds no edits to score; use blip3o.data.editing.ShapesEditDataModule, or leave "
                "ShapesEditScore out."
            )
        return [read_edit(json.loads(edit)) if edit else None for edit in batch["edit"]]

    def judged(self, images: np.ndarray, asked: list[Any], names: list[str]) -> list[dict[str, Any]]:
        """Rows of success, consistency and error."""
        return edit_rows(verify_edits(list(images), asked, self.world), asked, names)

    def scores(self, rows: list[dict[str, Any]], stage: str) -> dict[str, float]:
        """The means over the edits, and the success of each kind."""
        found = edit_summary(rows)
        means = {f"{stage}/edit/{name}": found[name]["mean"] for name in ("success", "consistency", "both", "mae")}
        by_kind = {f"{stage}/edit/success/{kind}": score["success"]["mean"] for kind, score in found["kinds"].items()}
        return means | by_kind

    def drawn(self, images: np.ndarray, asked: list[Any]) -> Image.Image:
        """Source, result, difference and what was expected of each edit."""
        verdicts = verify_edits(list(images), asked, self.world)
        panels, labels, columns = edit_panels(list(images), asked, verdicts, self.world)
        return contact_sheet(panels, labels, columns=columns, scale=2)

    def sheet_name(self, stage: str, step: int) -> str:
        """File of the sheet."""
        return f"{stage}-edit-{step:06d}.png"
