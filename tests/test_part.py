"""Part: constructors' arguments are kept, and written as plain values."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from blip3o.part import Part


class Leaf(Part):
    def __init__(self, size: int, *, scale: float = 0.5, name: str | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)


class Inherits(Leaf):
    """No constructor of its own."""


class Extends(Leaf):
    def __init__(self, extra: bool = True) -> None:
        super().__init__(3, scale=2.0)


class Holds(Part):
    def __init__(self, parts: Sequence[Part], table: dict[str, Any], where: Path) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class Takes(Part):
    def __init__(self, value: object) -> None:
        super().__init__()


def test_arguments_are_kept_however_they_were_passed() -> None:
    expected = {"size": 2, "scale": 0.5, "name": None}
    assert Leaf(2).init_args == Leaf(size=2).init_args == Leaf(2, scale=0.5).init_args == expected


def test_a_subclass_keeps_its_own_arguments() -> None:
    assert Inherits(2, name="x").init_args == {"size": 2, "scale": 0.5, "name": "x"}
    assert Extends().init_args == {"extra": True}
    assert Extends().config()["class_path"].endswith("test_part.Extends")


def test_config_is_plain_and_holds_the_parts_within() -> None:
    part = Holds((Leaf(1), Extends(False)), {"a": Leaf(2), "b": [1, 2.5, None, "x"]}, Path("some/where"))
    leaf = f"{__name__}.Leaf"
    config = part.config()
    assert config == {
        "class_path": f"{__name__}.Holds",
        "init_args": {
            "parts": [
                {"class_path": leaf, "init_args": {"size": 1, "scale": 0.5, "name": None}},
                {"class_path": f"{__name__}.Extends", "init_args": {"extra": False}},
            ],
            "table": {
                "a": {"class_path": leaf, "init_args": {"size": 2, "scale": 0.5, "name": None}},
                "b": [1, 2.5, None, "x"],
            },
            "where": "some/where",
        },
    }
    assert yaml.safe_load(yaml.safe_dump(config)) == config


def test_a_copy_has_the_same_config() -> None:
    part = Holds([Leaf(1)], {}, Path("x"))
    again = copy.deepcopy(part)
    assert again.config() == part.config()
    assert again.init_args["parts"][0] is again.parts[0], "a copy describes its own parts"


def test_arguments_are_no_submodules() -> None:
    part = Holds([Leaf(1)], {"a": Leaf(2)}, Path("x"))
    assert list(part.state_dict()) == ["parts.0.layer.weight", "parts.0.layer.bias"]


@pytest.mark.parametrize("value", [object(), nn.Linear(1, 1), functools.partial(Leaf), {"deep": [Leaf]}], ids=repr)
def test_what_can_not_be_written_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=r"Takes\.value.*can not be written to config\.yaml"):
        Takes(value).config()
