"""A plan: what to vary, from which experiment, how often, and what counts as equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from blip3o.ablation.merge import override
from blip3o.ablation.source import Source, Where, flag, mapping, number, one_of, read_yaml, whole
from blip3o.shapes.world import TAGS

Design = Literal["grid", "one_factor", "list"]
Variance = Literal["own", "pooled"]

KEYS = {
    "base": "experiment to start from, relative to the plan or to the working directory",
    "overrides": "changes to the base that all runs share",
    "budget": "max_steps and/or minutes of a run",
    "seeds": "seeds of every variant",
    "reference_seeds": "more seeds of the reference, where `pairing` is false",
    "axes": "what varies: axis, variant, partial configuration",
    "reference": "for each axis the variant to compare with; the first where left out",
    "design": f"one of {', '.join(get_args(Design))}",
    "combinations": "for `design: list`, the variants to combine, axis by axis",
    "pairing": "whether one seed means the same data order and noise in all variants",
    "evaluation": "the shapes benchmark's num_captions, seed, batch_size, world and settings; null for none",
    "metrics": "more metrics: name, class_path and init_args; other ones are other runs",
    "primary": "the score that is compared; another one needs no new training",
    "higher_is_better": "of the primary score; true where left out, to be given for a loss",
    "equivalence": "whether to test for equivalence",
    "margin": "largest difference of the primary score that counts as none",
    "confidence": "of intervals, and 1 less the level of the tests",
    "variance": "`own` for each comparison, or `pooled` over an axis",
    "keep_models": "whether runs keep their trained models",
    "slurm": "submitit's parameters for `--launcher slurm`",
    "ray": "options of a task for `--launcher ray`",
}
"""Everything a plan may say."""

COLUMNS = (
    *("run", "seed", "state", "primary", "steps", "flops_per_step"),
    *("git", "machine", "accelerator", "threads", "jobs"),
)
"""Columns of `results.csv` that are no axis; all others of these have a slash in their names."""

_BUDGET = ("max_steps", "minutes")
_EVALUATION: dict[str, Any] = {"num_captions": 120, "seed": 0, "batch_size": 32, "world": None, "settings": {}}

Combination = tuple[tuple[str, str], ...]
"""The variant of every axis."""


@dataclass(frozen=True)
class Plan:
    """A plan that was read and checked; see `KEYS`.

    Attributes:
        source: the file.
        base: the base experiment with what all runs share laid over it.
        base_path: its file.
        axes: overrides by axis and variant.
        reference: variant of each axis.
        combinations: the variants to run, the reference first.
        seeds: of all variants.
        reference_seeds: all of the reference's, `seeds` included.
        evaluation: arguments of the shapes benchmark, or None.
        metrics: class and arguments of each other metric.
        launchers: options by the launcher's name.
    """

    source: Source
    base: dict[str, Any]
    base_path: Path
    axes: dict[str, dict[str, dict[str, Any]]]
    reference: dict[str, str]
    combinations: list[Combination]
    seeds: list[int]
    reference_seeds: list[int]
    design: Design = "one_factor"
    pairing: bool = True
    evaluation: dict[str, Any] | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    primary: str = "shapes/overall"
    higher_is_better: bool = True
    margin: float | None = None
    confidence: float = 0.95
    variance: Variance = "own"
    keep_models: bool = False
    launchers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def reference_combination(self) -> Combination:
        """The reference of every axis."""
        return tuple(self.reference.items())

    def config(self, combination: Combination) -> dict[str, Any]:
        """The base with the variants of a combination laid over it."""
        config = self.base
        for axis, variant in combination:
            config = override(config, self.axes[axis][variant])
        return config


def read_plan(path: str | Path) -> Plan:
    """Reads and checks a plan; nothing is built yet (see `blip3o.ablation.check`).

    Raises:
        ValueError: with file, line and remedy, at the first thing that is wrong.
    """
    source = read_yaml(Path(path))
    values = source.values
    if not isinstance(values, dict):
        source.fail((), "a plan is a mapping with base, seeds and axes; write those.")
    source.check_keys((), values, KEYS)
    for key in ("base", "axes"):
        if not values.get(key):
            source.fail((key,), f"{key} is missing: {KEYS[key]}; add it.")
    base_path, base = _base(source, values)
    axes = _axes(source, values["axes"])
    reference = _reference(source, values.get("reference") or {}, axes)
    design = one_of(source, values, "design", "one_factor", get_args(Design))
    seeds = _seeds(source, values, "seeds", required=True)
    more = _seeds(source, values, "reference_seeds", required=False)
    pairing = flag(source, values, "pairing", True)
    if more and pairing:
        told = "reference_seeds have no partner where runs are paired by seed; leave them out, or `pairing: false`."
        source.fail(("reference_seeds",), told)
    margin = _margin(source, values)
    confidence = number(source, values, "confidence", 0.95)
    if not 0.5 <= confidence < 1:
        source.fail(("confidence",), f"confidence ({confidence}) must lie in [0.5, 1); 0.95 is usual.")
    evaluation = _evaluation(source, values)
    metrics = _metrics(source, values.get("metrics") or {}, evaluation)
    primary = _primary(source, values.get("primary") or "shapes/overall", evaluation, metrics)
    return Plan(
        source=source,
        base=base,
        base_path=base_path,
        axes=axes,
        reference=reference,
        combinations=_combinations(source, values.get("combinations"), axes, reference, design),
        seeds=seeds,
        reference_seeds=[*seeds, *(seed for seed in more if seed not in seeds)],
        design=design,  # type: ignore[arg-type]
        pairing=pairing,
        evaluation=evaluation,
        metrics=metrics,
        primary=primary,
        higher_is_better=flag(source, values, "higher_is_better", True),
        margin=margin,
        confidence=confidence,
        variance=one_of(source, values, "variance", "own", get_args(Variance)),  # type: ignore[arg-type]
        keep_models=flag(source, values, "keep_models", False),
        launchers={name: mapping(source, (name,), values.get(name) or {}) for name in ("slurm", "ray")},
    )


def _base(source: Source, values: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The base experiment, with shared overrides and budget."""
    name = str(values["base"])
    places = [source.path.parent / name, Path(name)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        source.fail(("base",), f"base ({name}) is no file beside the plan or in the working directory; name one.")
    config = read_yaml(path).values
    if not isinstance(config, dict) or "model" not in config:
        source.fail(("base",), f"base ({name}) is no experiment: it has no model; name a YAML file of `blip3o fit`.")
    config = override(config, mapping(source, ("overrides",), values.get("overrides") or {}))
    budget = mapping(source, ("budget",), values.get("budget") or {})
    source.check_keys(("budget",), budget, _BUDGET)
    for key in budget:
        if number(source, budget, key, 1, ("budget",)) <= 0 or (key == "max_steps" and not whole(budget[key])):
            source.fail(("budget", key), f"{key} ({budget[key]!r}) must be a positive number; raise it.")
    if "max_steps" in budget:
        config = override(config, {"trainer.max_steps": budget["max_steps"]})
    if "minutes" in budget:
        config = override(config, {"trainer.max_time": {"seconds": round(budget["minutes"] * 60)}})
    return path, config


def _axes(source: Source, axes: Any) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, variants in mapping(source, ("axes",), axes).items():
        where: Where = ("axes", axis)
        if str(axis) in COLUMNS or "/" in str(axis):
            source.fail(where, f"axis {str(axis)!r} would be a column of results.csv twice; give it another name.")
        variants = mapping(source, where, variants)
        if len(variants) < 2:
            source.fail(where, f"axis {axis!r} has {len(variants)} variants; give at least two to compare.")
        found[str(axis)] = {
            str(name): mapping(source, (*where, name), changes or {}) for name, changes in variants.items()
        }
    return found


def _reference(source: Source, given: Any, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    given = mapping(source, ("reference",), given)
    source.check_keys(("reference",), given, axes)
    for axis, variant in given.items():
        if str(variant) not in axes[axis]:
            source.fail(("reference", axis), f"{axis} has no variant {variant!r}; name one of {', '.join(axes[axis])}.")
    return {axis: str(given.get(axis, next(iter(variants)))) for axis, variants in axes.items()}


def _combinations(
    source: Source, given: Any, axes: Mapping[str, Mapping[str, Any]], reference: Mapping[str, str], design: str
) -> list[Combination]:
    """What the design asks for, the reference first, nothing twice."""
    if given is not None and design != "list":
        source.fail(("combinations",), f"combinations go with `design: list`, and design is {design}; change either.")
    whole = [dict(reference)]
    if design == "grid":
        whole += [dict(zip(axes, names, strict=True)) for names in product(*axes.values())]
    elif design == "one_factor":
        whole += [{**reference, axis: name} for axis, variants in axes.items() for name in variants]
    else:
        if not isinstance(given, list) or not given:
            source.fail(("combinations",), "design is list, but combinations lists none; add them.")
        for index, one in enumerate(given):
            where: Where = ("combinations", index)
            one = mapping(source, where, one)
            source.check_keys(where, one, axes)
            for axis, name in one.items():
                if str(name) not in axes[axis]:
                    told = f"{axis} has no variant {name!r}; name one of {', '.join(axes[axis])}."
                    source.fail((*where, axis), told)
            whole.append({**reference, **{axis: str(name) for axis, name in one.items()}})
    return list(dict.fromkeys(tuple(one.items()) for one in whole))


def _seeds(source: Source, values: dict[str, Any], key: str, *, required: bool) -> list[int]:
    seeds = values.get(key)
    if not seeds:
        if required:
            source.fail((key,), f"{key} is missing or empty; list at least two whole numbers, such as [0, 1, 2].")
        return []
    if not isinstance(seeds, list):
        source.fail((key,), f"{key} ({seeds!r}) must be a list of whole numbers, such as [0, 1, 2].")
    for index, seed in enumerate(seeds):
        if not whole(seed) or not 0 <= seed < 2**32:
            source.fail((key, index), f"seed {seed!r} must be a whole number from 0 to 2**32 - 1; change it.")
        if seed in seeds[:index]:
            source.fail((key, index), f"seed {seed} is listed twice; a repeated run says nothing new, so leave one.")
    return list(seeds)


def _margin(source: Source, values: dict[str, Any]) -> float | None:
    if not flag(source, values, "equivalence", True):
        if values.get("margin") is not None:
            source.fail(("margin",), "margin is given, but equivalence is false; leave one of them out.")
        return None
    if values.get("margin") is None:
        told = "margin is missing: equivalence is tested against it; add `margin: 0.05`, the largest difference that "
        source.fail(("equivalence",), told + "counts as none, or `equivalence: false`.")
    margin = number(source, values, "margin", 0.0)
    if not margin > 0:
        source.fail(("margin",), f"margin ({margin}) must be above 0; no experiment can show a smaller difference.")
    return margin


def _evaluation(source: Source, values: dict[str, Any]) -> dict[str, Any] | None:
    if "evaluation" in values and values["evaluation"] is None:
        return None
    given = mapping(source, ("evaluation",), values.get("evaluation", {}))
    source.check_keys(("evaluation",), given, _EVALUATION)
    for key, least in (("num_captions", 1), ("seed", 0), ("batch_size", 1)):
        if key in given and (not whole(given[key]) or given[key] < least):
            source.fail(("evaluation", key), f"{key} ({given[key]!r}) must be a whole number of at least {least}.")
    settings = mapping(source, ("evaluation", "settings"), given.get("settings") or {})
    return {**_EVALUATION, **given, "settings": settings}


def _metrics(source: Source, given: Any, evaluation: Any) -> dict[str, dict[str, Any]]:
    metrics = mapping(source, ("metrics",), given)
    for name, one in metrics.items():
        where: Where = ("metrics", name)
        one = {"class_path": one} if isinstance(one, str) else mapping(source, where, one)
        source.check_keys(where, one, ("class_path", "init_args"))
        if name in ("train", "val") or (name == "shapes" and evaluation is not None):
            whose = "the benchmark of `evaluation`" if name == "shapes" else "what training logs"
            source.fail(where, f"metric {name!r} has the name of {whose}; give it another one.")
        if not one.get("class_path"):
            source.fail(where, f"metric {name!r} has no class_path; name a class.")
        metrics[name] = {key: value for key, value in one.items() if value is not None}
    return metrics


def _primary(source: Source, primary: Any, evaluation: Any, metrics: Mapping[str, Any]) -> str:
    """A score of the benchmark, of another metric, or a loss; of the last two only runs know the names."""
    shapes = [] if evaluation is None else [f"shapes/{name}" for name in ("overall", *TAGS)]
    kind = str(primary).partition("/")[0]
    if primary not in shapes and kind not in (*metrics, "train", "val"):
        known = ", ".join([*shapes, *(f"{name}/..." for name in (*metrics, "train", "val"))])
        source.fail(("primary",), f"primary ({primary}) is no score of this plan; name one of {known}.")
    if (
        kind in ("train", "val")
        and not str(primary).startswith("val/score")
        and "higher_is_better" not in source.values
    ):
        told = (
            f"primary ({primary}) is a loss or the like; say whether more of it is better: `higher_is_better: false`."
        )
        source.fail(("primary",), told)
    return str(primary)
