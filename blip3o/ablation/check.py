"""Building every variant before anything is trained, so that a mistake costs seconds and names its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blip3o.ablation.metrics import Metric, build_metric
from blip3o.ablation.plan import Combination, Plan
from blip3o.ablation.runs import list_runs, redirected
from blip3o.ablation.source import Where
from blip3o.data.encoded import EncodedDataModule
from blip3o.diffusion import DiffusionHead
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults, check_settings
from blip3o.shapes import World, get_world
from blip3o.training.cli import TrainingCLI, build


def check_plan(plan: Plan, say: Callable[[str], None] = lambda text: None) -> None:
    """Builds the module, data and trainer of every combination, and every metric; nothing is trained or written.

    Args:
        plan: the plan.
        say: told what is being built.

    Raises:
        ValueError: naming the plan's line and what the class says.
    """
    if plan.evaluation is not None:
        _check_evaluation(plan, plan.evaluation)
    metrics = _built_metrics(plan)
    first = {run.combination: run for run in reversed(list_runs(plan))}
    for combination in plan.combinations:
        say(", ".join(variant for _, variant in combination))
        with TemporaryDirectory() as folder:
            try:
                built = build(redirected(first[combination].settings["config"], Path(folder)))
                if isinstance(built.datamodule, EncodedDataModule):
                    built.datamodule.check_module(built.model)
                _check_steps_and_sizes(built, plan.evaluation and first[combination].settings["metrics"]["shapes"])
            except Exception as error:  # a constructor may raise anything, and all of it is about the plan
                told = essence(str(error) or type(error).__name__)
                where = _blame(plan, combination, told)
                what = _named(plan, combination)
                plan.source.fail(where, f"{what} can not be built: {told}")
            module = built.model
            if hasattr(module, "generation_defaults"):
                _check_metrics(plan, combination, metrics, module.model)
            if plan.primary.startswith("val/") and not _validates(built):
                told = f"primary ({plan.primary}) is of validation, but {_named(plan, combination)} has none within "
                told += f"{built.trainer.max_steps} steps; lower trainer.val_check_interval, or name another score."
                plan.source.fail(("primary",), told)
            if plan.evaluation is not None and not hasattr(module, "generation_defaults"):
                told = (
                    f"{type(module).__name__} generates no pictures; set `evaluation: null` and name a `primary` score."
                )
                plan.source.fail(("evaluation",), told)
            del module, built


def _built_metrics(plan: Plan) -> dict[str, Metric]:
    """The plan's own metrics; refused where the primary score is one of which less is better and the plan has it not.

    Raises:
        ValueError: naming the plan's line.
    """
    metrics = {}
    for name, description in plan.metrics.items():
        try:
            metrics[name] = build_metric(description)
        except ValueError as error:
            plan.source.fail(("metrics", name), str(error))
    kind, _, score = plan.primary.partition("/")
    if kind in metrics and score.partition("/")[0] in metrics[kind].lower_is_better and plan.higher_is_better:
        told = f"primary ({plan.primary}) is better where it is lower; add `higher_is_better: false`."
        plan.source.fail(("primary",), told)
    return metrics


def _check_metrics(plan: Plan, combination: Combination, metrics: dict[str, Metric], model: Blip3oNext) -> None:
    """Raises a ValueError if a metric could not score the model that a run will have trained."""
    for name, metric in metrics.items():
        try:
            metric.check(model)
        except ValueError as error:
            told = f"metric {name!r} can not score {_named(plan, combination)}: {essence(str(error))}"
            plan.source.fail(("metrics", name), told)


def _check_steps_and_sizes(built: TrainingCLI, benchmark: dict[str, Any] | None) -> None:
    """Raises a ValueError if training would never end, or pictures of data, head and benchmark differ in size.

    Args:
        built: module, data and trainer.
        benchmark: description of the shapes benchmark, where there is one.
    """
    if built.trainer.max_steps < 1:
        raise ValueError(
            f"max_steps ({built.trainer.max_steps}) must be at least 1: rows never end, so the number of steps is the "
            "length of a run."
        )
    head = getattr(getattr(built.model, "model", None), "diffusion", None)
    if not isinstance(head, DiffusionHead) or head.image_size is None:
        return
    given = getattr(built.datamodule, "world", None)
    sides = {"the data's world": given.canvas} if isinstance(given, World) and head.reads == "condition" else {}
    if benchmark is not None:
        sides["the benchmark's world"] = get_world(benchmark["init_args"]["world"]).canvas
    for whose, side in sides.items():
        if side != head.image_size:
            raise ValueError(
                f"image_size ({head.image_size}) of {type(head).__name__} is not the canvas ({side}) of {whose}; "
                "make them one."
            )


def _validates(built: TrainingCLI) -> bool:
    """Whether a validation falls within the steps, as far as the trainer knows by itself."""
    trainer = built.trainer
    interval = trainer.val_check_interval
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    return trainer.limit_val_batches != 0 and not (isinstance(interval, int) and interval > batches)


def _check_evaluation(plan: Plan, evaluation: dict[str, Any]) -> None:
    """The world and the settings of the benchmark."""
    if evaluation["world"] is not None:
        try:
            get_world(evaluation["world"])
        except ValueError as error:
            plan.source.fail(("evaluation", "world"), str(error))
    # Without that by reference images, which its prompts have not.
    known = {name: value for name, value in vars(GenerationDefaults()).items() if name != "image_guidance_scale"}
    plan.source.check_keys(("evaluation", "settings"), evaluation["settings"], known)
    try:
        check_settings(GenerationDefaults(**(known | evaluation["settings"])))
    except ValueError as error:
        plan.source.fail(("evaluation", "settings"), str(error))


def essence(message: str) -> str:
    """What a parser's long message comes down to."""
    message = " ".join(message.split())
    message = re.split(r"\s*(?:- Expected a <class 'NoneType'>|Got value:|Given value)", message)[0]
    message = message.rsplit("Errors: - ", 1)[-1]
    return re.sub(r"^.*Problem with given class_path '[^']*': (?:Parser key \"[^\"]*\": )?", "", message)


def _named(plan: Plan, combination: Combination) -> str:
    """What is different about a combination."""
    changed = [f"{axis}: {name}" for axis, name in combination if plan.reference[axis] != name]
    return "variant " + ", ".join(changed) if changed else "the reference"


def _blame(plan: Plan, combination: Combination, message: str) -> Where:
    """The place in the plan that a message is about: a key or value that it names, else the variant, else the base.

    The reference is built first, so what a variant changes is to blame where it changes anything.
    """
    words = set(re.findall(r"[\w.]+", message))
    changed = [("axes", axis, name) for axis, name in combination if plan.reference[axis] != name]
    others = [("axes", axis, name) for axis, name in combination if plan.reference[axis] == name]
    own = [place for place in changed if _at(plan.source.values, place)]
    for place in own or (*others, ("overrides",), ("budget",)):
        below = [where for where in plan.source.lines if where[: len(place)] == place and len(where) > len(place)]
        named = [where for where in below if words & _names(where[-1], _at(plan.source.values, where))]
        if named:
            return max(named, key=len)
    given = own or [place for place in others if _at(plan.source.values, place)]
    return given[0] if given else ("base",)


def _names(key: Any, value: Any) -> set[str]:
    """What a message may call an entry: its key, or the class that is its value."""
    own = {str(key), str(key).rsplit(".")[-1]} - {"class_path", "init_args"}
    return own | ({value} if isinstance(value, str) and "." in value else set())


def _at(values: Any, where: Where) -> Any:
    """The value at a place."""
    for key in where:
        values = values[int(key)] if isinstance(values, list) else values.get(key) if isinstance(values, dict) else None
    return values
