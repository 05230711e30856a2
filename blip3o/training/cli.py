"""`blip3o fit | validate | test | predict`: LightningCLI over our modules and data."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from blip3o.training.quiet import quiet

_SEED = 0  # where a configuration names none
_KEYWORDS = ("best", "last", "hpc")  # what Lightning takes in the place of a checkpoint's path


class TrainingCLI(LightningCLI):
    """LightningCLI that reports what a constructor refuses as it reports what the parser refuses."""

    def instantiate_classes(self) -> None:
        """Builds module, data and trainer; exits with code 2 and the message where a value is refused."""
        checkpoint = self.config[self.subcommand].get("ckpt_path") if self.subcommand else None
        if checkpoint and checkpoint not in _KEYWORDS and not Path(checkpoint).is_file():
            self.parser.error(f"ckpt_path ({checkpoint}) is no file; name a checkpoint, or leave it out to start anew.")
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            self.parser.error(str(error), error)
        if self.subcommand == "fit" and self.trainer.max_steps < 1:
            self.parser.error(
                f"trainer.max_steps ({self.trainer.max_steps}) must be at least 1: rows never end, so the number of "
                "steps is the length of the run."
            )


def run(args: Sequence[str], callbacks: Sequence[Callback] = ()) -> TrainingCLI:
    """Runs LightningCLI with `args`, such as `["fit", "--config", "experiments/shapes/codec.yaml"]`.

    Args:
        args: the command line.
        callbacks: more callbacks, after those of the configuration.

    Returns:
        What ran: its `model`, `datamodule` and `trainer`.

    Raises:
        SystemExit: with code 2 and the message on a wrong argument or configuration. With the environment variable
            JSONARGPARSE_DEBUG set, the error itself is raised instead, with its traceback.
    """
    with quiet():
        return _cli(list(args), callbacks=callbacks, save_config_kwargs={"overwrite": True})


def build(config: dict[str, Any]) -> TrainingCLI:
    """Builds module, data and trainer of a configuration without running anything or writing a file.

    Weights that nothing is loaded for are drawn from the configuration's seed, as a run would draw them.

    Args:
        config: the content of a YAML file of `blip3o fit`.

    Raises:
        ValueError: with what the parser or a constructor says.
    """
    seed = config.get("seed_everything", _SEED)
    config = {**config, "seed_everything": False}  # what is built here is not run, and says nothing of seeds
    with quiet(everything=True), torch.random.fork_rng(devices=[]):
        if isinstance(seed, int) and not isinstance(seed, bool):
            torch.default_generator.manual_seed(seed)
        try:
            return _cli(config, run=False, save_config_callback=None, parser_kwargs={"exit_on_error": False})
        except ArgumentError as error:
            raise ValueError(" ".join(str(error).split())) from error


def _cli(args: Any, callbacks: Sequence[Callback] = (), **kwargs: Any) -> TrainingCLI:
    return TrainingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=_SEED,
        trainer_defaults={"callbacks": list(callbacks)},
        args=args,
        **kwargs,
    )
