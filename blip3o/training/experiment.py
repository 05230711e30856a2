"""Reading an experiment's YAML without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

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
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    for section in ("data", "trainer"):
        parser.add_argument(f"--{section}", type=dict, default={})
    try:
        config = parser.parse_string(path.read_text())
        arguments = config.model.init_args
        if "weights" in arguments:
            arguments.weights = None
        with torch.device("meta"):
            return parser.instantiate(config).model, dict(config.trainer or {})
    except Exception as error:  # jsonargparse and constructors raise many kinds
        raise ValueError(f"config ({path}) does not build: {error}") from error


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
