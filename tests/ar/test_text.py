"""Text tokenizers: words to ids and back, special tokens, saving."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3o.ar.text import SPECIAL_TOKENS, load_text_tokenizer, word_tokenizer


def ids(tokenizer, text: str) -> list[int]:  # type: ignore[no-untyped-def]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_word_is_a_token_after_the_special_ones() -> None:
    tokenizer = word_tokenizer(["red", "circle"])
    assert len(tokenizer) == len(SPECIAL_TOKENS) + 2
    assert ids(tokenizer, "circle red  circle") == [5, 4, 5]
    assert tokenizer.decode([5, 4]) == "circle red"


def test_unknown_words_become_unk_and_punctuation_splits() -> None:
    tokenizer = word_tokenizer(["red", ","])
    assert ids(tokenizer, "red,blue") == [4, 5, tokenizer.unk_token_id]
    assert ids(tokenizer, "") == []


def test_capitals_are_apart_where_they_are_words() -> None:
    tokenizer = word_tokenizer(["the", "word", "in", "red", "A", "C", "T"])
    assert ids(tokenizer, "the word CAT in red") == [4, 5, 9, 8, 10, 6, 7]
    assert ids(tokenizer, "CAB<|im_end|>") == [9, 8, tokenizer.unk_token_id, 3]
    assert ids(word_tokenizer(["the", "CAT"]), "the CAT") == [4, 5], "words alone stay whole"


def test_special_tokens_are_read_from_text() -> None:
    tokenizer = word_tokenizer(["user", "red"])
    assert ids(tokenizer, "<|im_start|>user\nred<|im_end|>") == [2, 4, 5, 3]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1, 3)


def test_a_saved_tokenizer_reads_the_same(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["red", "circle"])
    tokenizer.save_pretrained(tmp_path)
    again = load_text_tokenizer(str(tmp_path))
    text = "<|im_start|>red circle pink<|im_end|>"
    assert ids(again, text) == ids(tokenizer, text) == [2, 4, 5, 1, 3]
    assert len(again) == len(tokenizer) and again.pad_token_id == tokenizer.pad_token_id


def test_a_list_of_words_is_a_word_tokenizer() -> None:
    assert ids(load_text_tokenizer(["red"]), "red") == [4]


@pytest.mark.parametrize("words", [[], ["red", "red"], ["red", "<unk>"]])
def test_words_that_are_none_or_repeated_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="words"):
        word_tokenizer(words)


def test_a_folder_without_a_vocabulary_is_refused_where_transformers_takes_an_empty_one(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(ValueError, match=r"holds no tokenizer: tokenizer\.json is missing; copy or download it again"):
        load_text_tokenizer(str(tmp_path))
    settings.write_text('{"tokenizer_class": "ByT5Tokenizer"}')  # it reads bytes
    assert load_text_tokenizer(str(tmp_path))("ab")["input_ids"] == [100, 101, 1]
