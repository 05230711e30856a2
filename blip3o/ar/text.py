"""Text tokenizers: any of Hugging Face's, or a small word-level one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")
_WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are `words`, split at white space and punctuation; others become `<unk>`.

    Where `words` holds single capital letters, such as `A`, every capital of a text is a token of its own.

    Raises:
        ValueError: if `words` is empty, repeats one or holds a special token.
    """
    table = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    if not words or len(table) != len(SPECIAL_TOKENS) + len(words):
        raise ValueError(f"words ({list(words)}) must be one or more different words, none of {SPECIAL_TOKENS}.")
    core = Tokenizer(WordLevel(table, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if any(len(word) == 1 and word.isupper() for word in words):
        apart = pre_tokenizers.Split(Regex("[A-Z]"), behavior="isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), apart])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )


def load_text_tokenizer(source: str | Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or hub id, whose own code is never run, or from a list of words.

    Raises:
        ValueError: if the folder or hub id holds none, or a damaged one.
    """
    if not isinstance(source, str):
        return word_tokenizer(source)
    if Path(source).is_dir():
        check_tokenizer_files(Path(source))
    # A config.json of an architecture that transformers does not know, such as the released one, tells it nothing.
    known = {"config": PreTrainedConfig()} if _is_foreign(Path(source) / "config.json") else {}
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **known)
    except Exception as error:
        told = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"text_tokenizer ({source}) holds no tokenizer that can be read: {told}") from error


def save_text_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a text tokenizer so that transformers 4.51, which the released code runs with, reads it as well.

    transformers 5 by itself names classes that 4.51 lacks, and lists what 4.51 takes for a mapping.
    """
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for note in ("backend", "is_local", "local_files_only"):
        config.pop(note, None)
    extra = config.pop("extra_special_tokens", None) or []
    named = config.pop("model_specific_special_tokens", None) or {}
    config["additional_special_tokens"] = [] if isinstance(extra, dict) else list(extra)
    config["extra_special_tokens"] = named | (extra if isinstance(extra, dict) else {})
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def check_tokenizer_files(folder: Path) -> None:
    """Raises a ValueError where a folder has no vocabulary, in whose place transformers may take an empty one."""
    if any(any(folder.glob(pattern)) for pattern in _FILES):
        return
    settings = folder / "tokenizer_config.json"
    try:
        named = str(json.loads(settings.read_text())["tokenizer_class"]) if settings.is_file() else ""
    except (ValueError, KeyError, TypeError):
        named = ""
    if named.removesuffix("Fast") not in _WITHOUT_FILES:
        raise ValueError(
            f"text_tokenizer ({folder}) holds no tokenizer: tokenizer.json is missing; copy or download it again."
        )


def _is_foreign(config: Path) -> bool:
    """Whether a config.json names an architecture that transformers does not know."""
    try:
        return config.is_file() and json.loads(config.read_text())["model_type"] not in CONFIG_MAPPING
    except (ValueError, KeyError, TypeError):
        return False  # transformers says what is wrong with it
