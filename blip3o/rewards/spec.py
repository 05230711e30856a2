"""A reward named on the command line: a class path, or a YAML file with one and its arguments."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path

import yaml

from blip3o.rewards.base import Reward


def build_reward(spec: str) -> Reward:
    """Builds a reward; it loads nothing before `prepare`.

    Args:
        spec: a class path such as `blip3o.rewards.ShapesReward`, or a YAML file with `class_path` and `init_args`.

    Raises:
        ValueError: if there is no such file or class, or the arguments do not suit.
    """
    from jsonargparse import ArgumentParser

    path = Path(spec)
    described: object = {"class_path": spec}
    if path.suffix in (".yaml", ".yml"):
        try:
            described = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise ValueError(f"reward ({spec}) can not be read: {error}") from error
    if not isinstance(described, dict) or not isinstance(described.get("class_path"), str):
        raise ValueError(f"reward ({spec}) must hold a class_path, and init_args where the class has arguments.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    try:
        reward = parser.instantiate(parser.parse_object({"reward": described})).reward
    except (ArgumentError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"reward ({spec}) can not be built: {' '.join(str(error).split())}") from error
    assert isinstance(reward, Reward), "the parser checks it"
    return reward
