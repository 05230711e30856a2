"""The editing benchmark of the shapes world: held-out edits, one image each, judged by the exact verifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from blip3o import __version__
from blip3o.evaluation.output import earlier_files, output_folder, remove, write_report
from blip3o.evaluation.shapes import check_size
from blip3o.images import contact_sheet
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.shapes import (
    ShapesEdit,
    World,
    edit_panels,
    edit_record,
    edit_rows,
    edit_summary,
    evaluation_edits,
    get_world,
    render,
    verify_edits,
)

SCORES = ("success", "consistency", "both", "mae")
_SHOWN = 12
_SAMPLE = ("metadata.jsonl", "samples/0000.png", "expected.png", "references/0.png", "references/1.png")


def evaluate_edits(
    pipe: Blip3oPipeline,
    output_dir: str | Path,
    *,
    model_name: str = "",
    num_edits: int = 300,
    seed: int = 0,
    batch_size: int = 32,
    world: str | World = "shapes",
    kinds: Sequence[str] | None = None,
    **settings: float | int | str,
) -> dict[str, Any]:
    """Edits rendered scenes by instructions that were held out of training, and scores the results.

    Writes `00000/{metadata.jsonl, references/0.png, samples/0000.png, expected.png}` and so on, `results.jsonl` (one
    line an image), `summary.json` and `sheet.png` with source, result, difference map and expected scene of the first
    12 edits. Image i has a generator of its own, so the scores do not depend on the batch size.

    Args:
        pipe: the pipeline to score.
        output_dir: where to write; created if missing.
        model_name: recorded in the summary.
        num_edits: held-out edits, balanced over the kinds.
        seed: picks the edits, 0 to `MAX_SEED`; image i is drawn with `seed * 1_000_000 + i`.
        batch_size: images generated at a time.
        world: world of the edits, or its name.
        kinds: kinds of edit; all of `blip3o.shapes.EDIT_KINDS` that the world holds when None.
        settings: arguments of the pipeline's call.

    Returns:
        The summary.

    Raises:
        ValueError: on a value out of range, if the model can not take the references, or if `output_dir` holds
            something else than an earlier evaluation.
    """
    root = output_folder(output_dir, seed, num_edits=num_edits, batch_size=batch_size)
    place = get_world(world)
    edits = evaluation_edits(place, num_edits, seed, kinds)
    check_takes_edits(pipe.model, edits)
    earlier: list[Path] | None = earlier_files(root, _SAMPLE)
    pictures: list[np.ndarray | None] = [None] * num_edits
    for batch in _batches(edits, batch_size):
        images = pipe(
            [edits[i].instruction for i in batch],
            image=[[Image.fromarray(render(scene, place)) for scene in edits[i].references] for i in batch],
            generator=[torch.Generator().manual_seed(seed * 1_000_000 + i) for i in batch],
            **settings,  # type: ignore[arg-type]
        ).images
        check_size(images[0], world)
        if earlier is not None:  # only now is it sure that the arguments are good
            remove(earlier)
            earlier = None
        for index, image in zip(batch, images, strict=True):
            _write_sample(root / f"{index:05d}", edits[index], image, place)
            pictures[index] = np.asarray(image)
    drawn = [picture for picture in pictures if picture is not None]
    verdicts = verify_edits(drawn, edits, place)
    rows = edit_rows(verdicts, edits, [f"{index:05d}/samples/0000.png" for index in range(num_edits)])
    panels, labels, columns = edit_panels(drawn[:_SHOWN], edits[:_SHOWN], verdicts[:_SHOWN], place)
    contact_sheet(panels, labels, columns=columns, scale=3).save(root / "sheet.png")
    return write_report(
        root,
        rows,
        benchmark="shapes-edit",
        world=world,
        model=model_name,
        seed=seed,
        judge=f"blip3o.shapes.verify_edits {__version__}",
        settings=pipe.defaults.updated(**settings).given(),
        scores=edit_summary(rows),
    )


def check_takes_edits(model: Blip3oNext, edits: Sequence[ShapesEdit]) -> None:
    """Raises a ValueError unless a model can be told the instructions and the references of edits.

    Args:
        model: the composed model.
        edits: what it is to be asked.
    """
    remedy = "name a model that was trained on edits (blip3o.data.editing.ShapesEditDataModule)"
    if model.diffusion.image_size is None:
        raise ValueError(
            f"model takes no references: its {type(model.diffusion).__name__} names no image_size; {remedy}."
        )
    said = " ".join(dict.fromkeys(edit.instruction for edit in edits))
    frame = "".join(model.template.edit_prompt(said, marked=not model.ar.reads_images))
    if unknown := list(dict.fromkeys(model.sequences.unknown_words(frame))):
        raise ValueError(
            f"model can not be told an edit: its text tokenizer lacks {unknown}; {remedy}, with these words in its "
            "text_tokenizer or another wording in its template."
        )
    if model.ar.reads_images:
        return
    num_tokens, most = model.tokenizer.num_tokens(), max(len(edit.references) for edit in edits)
    codes = torch.zeros(1, most * num_tokens, dtype=torch.long)
    prompts = [model.sequences.prompts([edit.instruction], references=codes)[0].shape[1] for edit in edits]
    needed, given = max(prompts) + (num_tokens if model.bridge.needs_tokens else 0), model.ar.context_length
    if needed > given:
        raise ValueError(
            f"model has no room for {most} reference(s): instruction, references and image take {needed} positions, "
            f"and its AR model has {given}; {remedy}, with max_position_embeddings of at least {needed}."
        )


def print_edit_summary(report: dict[str, Any], output_dir: Path) -> None:
    """Prints the scores with their 95 % intervals, and where the files are."""
    table = Table(pad_edge=False, title=f"shapes-edit, {report['num_images']} held-out edits, model {report['model']}")
    for column in ("kind", *SCORES, "edits"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, scores in report["kinds"].items():
        table.add_row(kind, *(_told(name, scores[name]) for name in SCORES), str(scores["num_images"]))
    table.add_row("overall", *(_told(name, report[name]) for name in SCORES), "", style="bold")
    console = Console()
    console.print(table)
    console.print(f"written to {output_dir}", highlight=False, soft_wrap=True)


def _told(name: str, score: dict[str, Any]) -> str:
    digits = 3 if name == "mae" else 2
    low, high = score["interval"]
    return f"{score['mean']:.{digits + 1}f} ({low:.{digits}f}-{high:.{digits}f})"


def _batches(edits: Sequence[ShapesEdit], size: int) -> list[list[int]]:
    """Numbers of edits that are drawn together: as many references for one as for another."""
    batches = []
    for count in sorted({len(edit.references) for edit in edits}):
        same = [index for index, edit in enumerate(edits) if len(edit.references) == count]
        batches += [same[first : first + size] for first in range(0, len(same), size)]
    return batches


def _write_sample(folder: Path, edit: ShapesEdit, image: Image.Image, world: World) -> None:
    for name in ("samples", "references"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(edit.references):
        Image.fromarray(render(scene, world)).save(folder / f"references/{number}.png")
    image.save(folder / "samples/0000.png")
    Image.fromarray(render(edit.target, world)).save(folder / "expected.png")
    (folder / "metadata.jsonl").write_text(json.dumps(edit_record(edit)) + "\n")
