"""A reward named on the command line or in a plan: a class path, perhaps with its arguments."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path

import yaml

from blip3o.rewards.base import Reward


def read_reward(spec: str) -> Reward:
    """Builds a reward from a class path such as `blip3o.rewards.ShapesReward`, or from a YAML file.

    Args:
        spec: the path, or a file with `class_path` and `init_args`.

    Raises:
        ValueError: if there is no such file or class, or the arguments do not suit.
    """
    path = Path(spec)
    described: object = {"class_path": spec}
    if path.suffix in (".yaml", ".yml"):
        try:
            described = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise ValueError(f"reward ({spec}) can not be read: {error}") from error
    return build_reward(described, spec)


def build_reward(described: object, spec: object = None) -> Reward:
    """Builds a reward; it loads nothing before `prepare`.

    Args:
        described: a mapping with `class_path` and, where the class has arguments, `init_args`.
        spec: what messages call it; `described` when None.

    Raises:
        ValueError: if there is no such class, or the arguments do not suit.
    """
    from jsonargparse import ArgumentParser

    spec = described if spec is None else spec
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
