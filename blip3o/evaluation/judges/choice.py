"""Which judge a command line asks for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from blip3o.evaluation.judges.base import Judge
from blip3o.evaluation.judges.openai_chat import OpenAIJudge
from blip3o.evaluation.judges.vision_language import TransformersJudge

_KINDS: dict[str, type[Judge]] = {"openai": OpenAIJudge, "transformers": TransformersJudge}


def choose_judge(choice: str, given: dict[str, Any]) -> Judge:
    """Builds a judge; nothing is loaded.

    Args:
        choice: `openai`, `transformers`, or a YAML file with the `class_path` and `init_args` of any judge.
        given: arguments for the first two, those that are None left out; a file holds its own.

    Raises:
        ValueError: if there is no such judge, or its arguments do not suit.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if choice in _KINDS:
        if "model" not in chosen:
            raise ValueError(f"judge ({choice}) needs judge_model; name the model that judges.")
        return _built(choice, chosen)
    path = Path(choice)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"judge ({choice}) must be openai, transformers or a YAML file with class_path.")
    if not path.is_file():
        raise ValueError(f"judge ({choice}) is no file; name one with class_path and init_args.")
    if chosen:
        names = ", ".join(f"judge_{name}" for name in chosen)
        raise ValueError(f"judge ({choice}) holds its own arguments; write {names} into the file.")
    return _from_file(path)


def _built(choice: str, arguments: dict[str, Any]) -> Judge:
    kind = _KINDS[choice]
    strange = arguments.keys() - inspect.signature(kind).parameters.keys()
    if strange:
        told = ", ".join(f"judge_{name}" for name in sorted(strange))
        raise ValueError(f"judge ({choice}) takes no {told}; leave it out.")
    return kind(**arguments)


def _from_file(path: Path) -> Judge:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Judge, "judge", required=True)
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        judge = parser.instantiate(parser.parse_object({"judge": described})).judge
    except Exception as error:  # yaml and jsonargparse raise many kinds for what does not suit
        raise ValueError(f"judge ({path}) can not be built: {' '.join(str(error).split())[:400]}") from error
    assert isinstance(judge, Judge)
    return judge
