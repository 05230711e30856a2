"""Finding a folder by path or hub id, and checking what a library's `from_pretrained` reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def check_loading_info(info: Mapping[str, Any], source: str) -> None:
    """Raises where weights did not match the model; the libraries by themselves leave missing weights random.

    Args:
        info: what transformers and diffusers return for `output_loading_info=True`.
        source: where the weights came from.

    Raises:
        ValueError: if weights are missing, unexpected or mis-shaped, as `listed`.
    """
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "mis-shaped": "mismatched_keys"}
    problems = {kind: sorted(map(str, info.get(key) or ())) for kind, key in kinds.items()}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the weights in {source} do not fit its config: {told}.")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in one line; of more than `most` the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_keys(argument: str, given: Iterable[str], known: Iterable[str], of: str) -> None:
    """Raises where a configuration holds keys that its library would drop without a word.

    Args:
        argument: name of the caller's argument.
        given: keys of the configuration; those that start with an underscore are the library's own notes.
        known: keys that mean something.
        of: what the configuration describes.

    Raises:
        ValueError: naming the unknown keys, and the known one nearest to each.
    """
    known = set(known)
    unknown = [key for key in given if key not in known and not key.startswith("_")]
    if unknown:
        near = [match for key in unknown for match in get_close_matches(key, known, n=1)]
        hint = f"; did you mean {', '.join(near)}?" if near else "; leave them out."
        raise ValueError(f"{argument} holds keys that {of} does not know: {', '.join(unknown)}{hint}")


def resolve_folder(
    name_or_path: str | Path,
    argument: str,
    others: str = "",
    *,
    wanted: Sequence[str] | None = None,
    unwanted: Sequence[str] = (),
) -> Path:
    """The folder at a path, or the local copy of a hub repository.

    Args:
        name_or_path: a folder, or a hub id `owner/name`.
        argument: name of the caller's argument, for the message.
        others: what else the caller takes, for the message.
        wanted: patterns of the files to fetch from the hub, in which `*` also stands for slashes; all when None.
        unwanted: patterns of files to leave there, though they are wanted.

    Raises:
        ValueError: if it is neither.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    choice = f"pass {others}a folder, or a hub id owner/name."
    if not path.is_absolute() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    str(name_or_path),
                    allow_patterns=None if wanted is None else list(wanted),
                    ignore_patterns=list(unwanted) or None,
                )
            )
        except Exception as error:
            raise ValueError(
                f"{argument} ({name_or_path}) is no folder, and the hub gave: {error}; {choice}"
            ) from error
    raise ValueError(f"{argument} ({name_or_path}) is unknown; {choice}")
