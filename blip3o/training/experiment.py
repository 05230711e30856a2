"""Reading an experiment's YAML without running it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

_OF_A_RUN = ("optimizer", "lr_scheduler", "ckpt_path", "weights_only")
"""Keys that LightningCLI adds to the configurations that it saves."""

BYTES = {"64": 8, "32": 4, "16": 2, "bf16": 2}


def build_on_meta(path: str | Path) -> tuple[LightningModule, dict[str, Any]]:
    """The LightningModule that an experiment names, without memory for its weights, and the `trainer` section.

    Args:
        path: an experiment's YAML, such as `experiments/shapes/joint.yaml`; weights that it names are not read.

    Raises:
        ValueError: if the file is missing or does not fit the classes that it names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config ({path}) is no file; name an experiment, such as experiments/shapes/joint.yaml.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"config ({path}) is no YAML: {_line(error)}") from error
    if not isinstance(content, dict) or "model" not in content:
        hint = "; it is a plan of `blip3o ablate`" if isinstance(content, dict) and "axes" in content else ""
        raise ValueError(f"config ({path}) names no model{hint}; pass an experiment of `blip3o fit`.")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int | bool)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    for section in ("data", "trainer"):
        parser.add_argument(f"--{section}", type=dict, default={})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers and torch tell of weights that are not there
            config = parser.parse_object({key: value for key, value in content.items() if key not in _OF_A_RUN})
            if "weights" in config.model.init_args:
                config.model.init_args.weights = None
            with torch.device("meta"):
                return parser.instantiate(config).model, dict(config.trainer or {})
    except Exception as error:  # jsonargparse and constructors raise many kinds
        raise ValueError(f"config ({path}) does not build: {_line(error)}") from error


def _line(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def bytes_per_number(trainer: dict[str, Any]) -> int:
    """Bytes of a weight under a trainer's `precision`: mixed precisions keep weights in float32.

    Raises:
        ValueError: on a precision of another form.
    """
    precision = str(trainer.get("precision") or "32-true")
    name, _, kind = precision.partition("-")
    if name not in BYTES or kind not in ("", "true", "mixed"):
        raise ValueError(f"trainer.precision ({precision}) is unknown here; use 32-true, bf16-true or bf16-mixed.")
    return 4 if kind == "mixed" else BYTES[name]


def computed_in(trainer: dict[str, Any]) -> torch.dtype:
    """The numbers that products are computed with under a trainer's `precision`, of the forms of `bytes_per_number`."""
    name = str(trainer.get("precision") or "32-true").partition("-")[0]
    return {"64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
