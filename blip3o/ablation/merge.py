"""Partial configurations over a base: how a variant changes an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


def override(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A new configuration: `changes` laid over `base`.

    Mappings merge key by key; everything else, lists included, is replaced. The top keys of `changes` may be dotted
    (`trainer.max_steps`). In a mapping with a `class_path`, keys other than `class_path` and `init_args` are arguments
    of the class, as on the command line (`model.model.bridge.depth` is
    `model.init_args.model.init_args.bridge.init_args.depth`). Where a change names another class, the arguments of the
    old one are dropped. So are all other keys of a mapping whose `model_type` becomes another one, such as the `config`
    of an AR model: they describe the old model.
    """
    result: dict[str, Any] = deepcopy(dict(base))
    for key, value in changes.items():
        _put(result, str(key).split("."), value)
    return result


def _put(target: dict[Any, Any], path: Sequence[Any], value: Any) -> None:
    """Lays `value` over what `target` holds at a path of keys."""
    key, *rest = path
    if "class_path" in target and key not in _OF_A_CLASS:
        target["init_args"] = _opened(target.get("init_args"))
        target = target["init_args"]
    if rest:
        target[key] = _opened(target.get(key))
        _put(target[key], rest, value)
    elif isinstance(value, Mapping):
        inner = _opened(target.get(key), value)
        # The kind comes first: it decides what the other keys mean.
        for name in sorted(value, key=lambda name: name not in ("class_path", "model_type")):
            _put(inner, [name], value[name])
        target[key] = inner
    else:
        if key == "class_path" and target.get(key) not in (None, value):
            target.pop("init_args", None)
            target.pop("dict_kwargs", None)
        if key == "model_type" and target.get(key) not in (None, value):
            target.clear()
        target[key] = deepcopy(value)


def _opened(value: Any, change: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
    """A value as a mapping to be changed; a plain string that names a class becomes that class without arguments."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str) and _is_class(value) and "class_path" not in (change or {}):
        return {"class_path": value}
    return {}


def _is_class(text: str) -> bool:
    """Whether a plain string looks like `package.module.Class`."""
    *modules, name = text.split(".")
    return bool(modules) and name[:1].isupper() and all(part.isidentifier() for part in (*modules, name))
