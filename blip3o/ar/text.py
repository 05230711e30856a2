"""Text tokenizers: any of Hugging Face's, or a small word-level one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are `words`, split at white space and punctuation; others become `<unk>`.

    Raises:
        ValueError: if `words` is empty, repeats one or holds a special token.
    """
    table = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    if not words or len(table) != len(SPECIAL_TOKENS) + len(words):
        raise ValueError(f"words ({list(words)}) must be one or more different words, none of {SPECIAL_TOKENS}.")
    core = Tokenizer(WordLevel(table, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
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
    # A config.json of an architecture that transformers does not know, such as the released one, tells it nothing.
    known = {"config": PreTrainedConfig()} if _is_foreign(Path(source) / "config.json") else {}
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **known)
    except Exception as error:
        told = next(iter(str(error).splitlines()), repr(error))
        raise ValueError(f"text_tokenizer ({source}) holds no tokenizer that can be read: {told}") from error


def _is_foreign(config: Path) -> bool:
    """Whether a config.json names an architecture that transformers does not know."""
    try:
        return config.is_file() and json.loads(config.read_text())["model_type"] not in CONFIG_MAPPING
    except (ValueError, KeyError, TypeError):
        return False  # transformers says what is wrong with it
