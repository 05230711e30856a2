"""Small benchmark folders, edited pictures to judge, and a tiny model that edits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.evaluation.answers import Question
from blip3o.evaluation.edits import EditBenchmark
from blip3o.evaluation.gedit import GROUPS
from blip3o.evaluation.imgedit_prompts import TYPES
from blip3o.evaluation.judges import Answer, Judge
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.prompts import PromptTemplate
from tests.tiny import perturbed, tiny_ar, tiny_head, tiny_tokenizer

TEMPLATE = PromptTemplate(
    "{caption}", edit="{instruction}", before_references="", after_references="", system=None, chat=False
)
INSTRUCTIONS = ("a red circle", "a green square left of a circle", "two blue triangles", "a square")


@cache
def editor() -> Blip3oPipeline:
    """An untrained model of 32-pixel pictures, whose output depends on its references and its seed."""
    model = Blip3oNext(
        tiny_tokenizer(), tiny_ar(), MLPBridge, tiny_head(), TEMPLATE, reference_latents=MLPBridge
    ).eval()
    perturbed(model.ar, std=0.2)
    return Blip3oPipeline(model, GenerationDefaults(num_inference_steps=2, top_k=0))


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture of two colours, another for each number."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 40))
    image.paste((255 - number * 37 % 256, 200, number * 53 % 256), (0, 0, size[0] // 2, size[1] // 2))
    return image


def imgedit_folder(folder: Path, types: Sequence[str] = TYPES) -> Path:
    """An item a type, keyed 100, 101 and so on."""
    entries = {}
    for index, kind in enumerate(types):
        name = f"pictures/{index:03d}.jpg"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(path, quality=95)
        entries[str(100 + index)] = {"id": name, "prompt": INSTRUCTIONS[index % 4], "edit_type": kind}
    (folder / "basic_edit.json").write_text(json.dumps(entries))
    return folder


def gedit_fields(index: int, group: str, language: str = "en", intersection: bool = True) -> dict[str, Any]:
    return {
        "task_type": group,
        "key": f"key{index}",
        "instruction": INSTRUCTIONS[index % 4],
        "instruction_language": language,
        "Intersection_exist": intersection,
    }


def gedit_folder(folder: Path, rows: Sequence[dict[str, Any]] | None = None) -> Path:
    """`metadata.jsonl` with the given rows, or an English row a group; each has a picture of its own."""
    if rows is None:
        rows = [gedit_fields(index, group) for index, group in enumerate(GROUPS)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, row in enumerate(rows):
        picture(index).save(folder / f"{index}.png")
        lines.append(json.dumps({**row, "input_image": f"{index}.png"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def edited(benchmark: EditBenchmark, output: Path) -> Path:
    """A folder of edited pictures that no model made: item i is of one colour, whose red is i."""
    for item in benchmark.items:
        path = output / item.output
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (item.index, 0, 0)).save(path)
    return output


def question(**changes: Any) -> Question:
    given = {"name": "edit", "prompt": "How good?", "shows": ("before", "after"), "num_scores": 3, "low": 1, "high": 5}
    return Question(**(given | changes))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Scripted(Judge):
    """Gives the answers of a list in their order, the last one for ever; remembers what it was asked."""

    def __init__(self, *answers: str | Exception, name: str = "scripted", max_concurrency: int = 1) -> None:
        self.answers = list(answers)
        self.id = name
        self.settings = {}
        self.max_concurrency = max_concurrency
        self.asked: list[str] = []
        self.seen: list[list[Image.Image]] = []

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Answer:
        self.asked.append(prompt)
        self.seen.append(list(images))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, f"{self.id} 1.0")


def scores(*numbers: float) -> str:
    return json.dumps({"reasoning": "seen", "scores": list(numbers)})


class Silent(Judge):
    """Says the same whatever it is asked; a judge of a user's own, built from a file."""

    def __init__(self, *, words: str) -> None:
        self.id = f"silent: {words}"
        self.settings = {}
        self.words = words

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Answer:
        return Answer(self.words, "1")
