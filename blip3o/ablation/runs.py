"""The runs of a plan: what each is called, where it lives, and exactly what it does."""

from __future__ import annotations

import hashlib
import inspect
import json
import pkgutil
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o.ablation.merge import override
from blip3o.ablation.plan import Combination, Plan
from blip3o.data.shards import read_index

RESULT = "result.json"
SETTINGS = "run.json"
PROGRESS = "progress.json"
FAILURE = "failure.json"
LOG = "log.txt"
_WRITES_ELSEWHERE = ("ExportModel", "ExportParts", "WriteImages")
_LOGGER = "lightning.pytorch.loggers.CSVLogger"


@dataclass(frozen=True)
class Run:
    """One training and its scores.

    Attributes:
        combination: variant of every axis.
        seed: as the plan lists it.
        settings: all that decides the result, as plain values.
    """

    combination: Combination
    seed: int
    settings: dict[str, Any]

    @property
    def variant(self) -> str:
        """The variants in one word."""
        return "+".join(variant for _, variant in self.combination)

    @property
    def id(self) -> str:
        """Name and fingerprint: a run whose settings change is another run."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        name = re.sub(r"[^\w.+-]+", "_", self.variant)[:60]
        return f"{name}-seed{self.seed}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"

    def folder(self, root: Path) -> Path:
        """Where it lives in an output folder."""
        return root / "runs" / self.id


def list_runs(plan: Plan) -> list[Run]:
    """All runs, seed by seed, so that a plan that is stopped early has whole comparisons."""
    configs = {one: plan.config(one) for one in plan.combinations}
    runs = []
    for seed in plan.reference_seeds:
        for combination, config in configs.items():
            if seed in plan.seeds or combination == plan.reference_combination:
                runs.append(_run(plan, combination, seed, config))
    return runs


def _run(plan: Plan, combination: Combination, seed: int, config: dict[str, Any]) -> Run:
    own = seed if plan.pairing else unpaired_seed(seed, combination)
    metrics: dict[str, Any] = {}
    if plan.evaluation is not None:
        world = plan.evaluation["world"] or _world(config)
        metrics["shapes"] = {
            "class_path": "blip3o.ablation.metrics.ShapesMetric",
            "init_args": {**plan.evaluation, "world": world},
        }
    settings = {
        "config": seeded(config, own),
        "metrics": metrics | plan.metrics,
        "keep_model": plan.keep_models,
    }
    return Run(combination, seed, settings)


def unpaired_seed(seed: int, combination: Combination) -> int:
    """A seed that no other variant has."""
    digest = hashlib.blake2b(f"{seed}/{sorted(combination)}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def seeded(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The configuration with `seed` for weights, module and data, where these take one."""
    changes: dict[str, Any] = {"seed_everything": seed}
    for part in ("model", "data"):
        described = config.get(part)
        path = described.get("class_path") if isinstance(described, dict) else described
        if isinstance(path, str) and _takes_seed(path):
            changes[part] = {"class_path": path, "init_args": {"seed": seed}}
    return override(config, changes)


def _takes_seed(path: str) -> bool:
    try:
        return "seed" in inspect.signature(pkgutil.resolve_name(path)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return False  # the check of the plan says what is wrong with the class


def _world(config: dict[str, Any]) -> str:
    """The world of the data, where it is named: in the configuration, or in the folder of encoded data."""
    data = config.get("data")
    arguments = (data.get("init_args") or {}) if isinstance(data, dict) else {}
    world = arguments.get("world")
    if isinstance(data, dict) and str(data.get("class_path")).rsplit(".")[-1] == "EncodedDataModule":
        with suppress(ValueError):  # the check of the plan says what is wrong with the folder
            world = read_index(str(arguments.get("folder"))).world
    return world if isinstance(world, str) else "shapes"


def redirected(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with every file that it would write inside `folder`.

    The logger becomes a CSVLogger, checkpoints go to `checkpoints/`, and callbacks of ours that export elsewhere are
    left out: a run exports by itself. Other callbacks stay as they are.
    """
    callbacks = []
    for one in (config.get("trainer") or {}).get("callbacks") or []:
        one = {"class_path": one} if isinstance(one, str) else one
        name = one["class_path"].rsplit(".")[-1]
        if name == "ModelCheckpoint":
            one = {**one, "init_args": {**(one.get("init_args") or {}), "dirpath": str(folder / "checkpoints")}}
        if name not in _WRITES_ELSEWHERE:
            callbacks.append(one)
    trainer = {
        **(config.get("trainer") or {}),
        "callbacks": callbacks,
        "default_root_dir": str(folder),
        "logger": {"class_path": _LOGGER, "init_args": {"save_dir": str(folder), "name": "", "version": "log"}},
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return {**config, "trainer": trainer}
