"""How a partial configuration changes a base."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from blip3o.ablation.merge import override

BASE: dict[str, Any] = {
    "model": {
        "class_path": "a.Module",
        "init_args": {
            "bridge": {"class_path": "a.B", "init_args": {"depth": 2, "width": 3}},
            "head": "a.Head",
            "weights": {"tokenizer": "t", "diffusion.codec": "c"},
        },
    },
    "trainer": {"max_steps": 5, "callbacks": [1, 2]},
}


def bridge(config: dict[str, Any]) -> Any:
    return config["model"]["init_args"]["bridge"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.bridge.depth": 4}, {"class_path": "a.B", "init_args": {"depth": 4, "width": 3}}),
        ({"model.init_args.bridge.init_args.depth": 4}, {"class_path": "a.B", "init_args": {"depth": 4, "width": 3}}),
        ({"model": {"bridge": {"depth": 4}}}, {"class_path": "a.B", "init_args": {"depth": 4, "width": 3}}),
        ({"model.bridge": {"class_path": "a.C"}}, {"class_path": "a.C"}),
        ({"model.bridge": {"init_args": {"n": 1}, "class_path": "a.C"}}, {"class_path": "a.C", "init_args": {"n": 1}}),
        (
            {"model.bridge": {"class_path": "a.B", "init_args": {"width": 9}}},
            {"class_path": "a.B", "init_args": {"depth": 2, "width": 9}},
        ),
        ({"model.bridge": "a.C"}, "a.C"),
        ({"model.bridge": None}, None),
    ],
)
def test_a_class_and_its_arguments(changes: dict[str, Any], expected: object) -> None:
    before = deepcopy(BASE)
    assert bridge(override(BASE, changes)) == expected
    assert before == BASE


def test_a_class_named_by_a_plain_string_takes_arguments() -> None:
    head = override(BASE, {"model.head.size": 3})["model"]["init_args"]["head"]
    assert head == {"class_path": "a.Head", "init_args": {"size": 3}}


def test_lists_are_replaced_and_mappings_merged() -> None:
    changed = override(BASE, {"trainer": {"callbacks": [3]}, "new.key": 1})
    assert changed["trainer"] == {"max_steps": 5, "callbacks": [3]} and changed["new"] == {"key": 1}


def test_only_the_top_keys_are_dotted() -> None:
    weights = override(BASE, {"model.weights": {"diffusion.codec": "d"}})["model"]["init_args"]["weights"]
    assert weights == {"tokenizer": "t", "diffusion.codec": "d"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ar.config": {"heads": 4, "model_type": "llama"}}, {"heads": 4, "model_type": "llama"}),
        ({"ar.config.model_type": "llama"}, {"model_type": "llama"}),
        ({"ar.config": {"heads": 4, "model_type": "qwen3"}}, {"heads": 4, "model_type": "qwen3", "qk_norm": True}),
        ({"ar.config": {"heads": 4}}, {"heads": 4, "model_type": "qwen3", "qk_norm": True}),
    ],
)
def test_another_kind_of_model_starts_anew(changes: dict[str, Any], expected: object) -> None:
    base = {"ar": {"config": {"model_type": "qwen3", "heads": 2, "qk_norm": True}}}
    assert override(base, changes)["ar"]["config"] == expected
