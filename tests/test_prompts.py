"""Prompts and training sequences: the published wording, and where masks and labels lie."""

from __future__ import annotations

import pytest
import torch

from blip3o.ar import ImageVocabulary, word_tokenizer
from blip3o.prompts import PromptTemplate, SequenceBuilder
from blip3o.structures import IGNORE_INDEX as NO
from tests.tiny import PLAIN

# Ids: <pad> 0, <unk> 1, <|im_start|> 2, <|im_end|> 3, then these from 4.
TOKENIZER = word_tokenizer(["system", "user", "assistant", "a", "red", "circle", "two", "squares"])
A, RED, CIRCLE, TWO, SQUARES = 7, 8, 9, 10, 11
# <im_start> 12, <im_end> 13, <S0..2> 14 15 16, <I0..9> 17..26.
VOCABULARY = ImageVocabulary(len(TOKENIZER), num_codes=10)
CODES = torch.tensor([[0, 1, 2], [9, 8, 7]])
CAPTIONS = ["a red circle", "squares"]


def builder(template: PromptTemplate = PLAIN) -> SequenceBuilder:
    return SequenceBuilder(TOKENIZER, VOCABULARY, template)


def test_the_default_wording_is_the_published_one() -> None:
    template = PromptTemplate()
    assert template.prompt("a red circle") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPlease generate image based on the following caption: a red circle<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert template.closing == "<|im_end|>\n"


def test_the_system_message_and_the_frame_can_be_left_out() -> None:
    assert PromptTemplate("draw {caption}", system=None).prompt("x") == (
        "<|im_start|>user\ndraw x<|im_end|>\n<|im_start|>assistant\n"
    )
    assert PLAIN.prompt("a red circle") == "a red circle" and PLAIN.closing == ""


def test_braces_of_a_caption_are_text() -> None:
    assert PLAIN.prompt("{caption} {0} {") == "{caption} {0} {"


def test_a_template_without_a_place_for_the_caption_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold '\{caption\}'"):
        PromptTemplate(generate="draw something")


def test_prompts_end_with_the_scale_token_and_are_padded_on_the_left() -> None:
    ids, mask = builder().prompts(CAPTIONS)
    assert ids.tolist() == [[A, RED, CIRCLE, 12, 14], [0, 0, SQUARES, 12, 14]]
    assert mask.tolist() == [[True] * 5, [False, False, True, True, True]]
    assert builder().prompts(["two squares"], scale=3)[0].tolist() == [[TWO, SQUARES, 12, 16]]
    assert builder().prompts([""])[0].tolist() == [[12, 14]]


def test_chat_prompts_read_the_frame_as_special_tokens() -> None:
    ids, _ = builder(PromptTemplate("{caption}", system="a")).prompts(["red"])
    assert ids.tolist() == [[2, 4, A, 3, 2, 5, RED, 3, 2, 6, 12, 14]]


@pytest.mark.parametrize(
    ("supervise", "labels"),
    [
        ("all", [[A, RED, CIRCLE, 12, 14, 17, 18, 19, 13], [NO, NO, SQUARES, 12, 14, 26, 25, 24, 13]]),
        ("answer", [[NO, NO, NO, 12, 14, 17, 18, 19, 13], [NO, NO, NO, 12, 14, 26, 25, 24, 13]]),
        ("image", [[NO, NO, NO, NO, NO, 17, 18, 19, NO], [NO, NO, NO, NO, NO, 26, 25, 24, NO]]),
    ],
)
def test_labels_and_masks_of_training_sequences(supervise: str, labels: list[list[int]]) -> None:
    sequences = builder().training(CAPTIONS, CODES, supervise)  # type: ignore[arg-type]
    assert sequences.input_ids.tolist() == [
        [A, RED, CIRCLE, 12, 14, 17, 18, 19, 13],
        [0, 0, SQUARES, 12, 14, 26, 25, 24, 13],
    ]
    assert sequences.attention_mask.tolist() == [[True] * 9, [False] * 2 + [True] * 7]
    assert sequences.labels.tolist() == labels
    # The scale token and the image tokens, neither markers nor text nor padding.
    assert sequences.condition_mask.tolist() == [[False] * 4 + [True] * 4 + [False]] * 2


@pytest.mark.parametrize("supervise", ["all", "answer"])
def test_the_closing_of_a_chat_is_supervised_with_the_answer_and_conditions_nothing(supervise: str) -> None:
    template = PromptTemplate("{caption}", system=None)
    sequences = builder(template).training(["red"], CODES[:1], supervise, scale=2)  # type: ignore[arg-type]
    assert sequences.input_ids.tolist() == [[2, 5, RED, 3, 2, 6, 12, 15, 17, 18, 19, 13, 3]]
    expected = sequences.input_ids.clone()
    if supervise == "answer":
        expected[:, :6] = NO
    assert torch.equal(sequences.labels, expected)
    assert sequences.condition_mask.nonzero()[:, 1].tolist() == [7, 8, 9, 10]


def test_training_sequences_begin_with_the_prompt_that_generation_uses() -> None:
    chat = builder(PromptTemplate())
    prompt, _ = chat.prompts(CAPTIONS[:1])
    sequences = chat.training(CAPTIONS[:1], CODES[:1])
    assert torch.equal(sequences.input_ids[:, : prompt.shape[1]], prompt)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token() -> None:
    tokenizer = word_tokenizer(["a", "red"])
    tokenizer.pad_token = None
    ids, mask = SequenceBuilder(tokenizer, VOCABULARY, PLAIN).prompts(["a red", "a"])
    assert ids[1, 0] == tokenizer.eos_token_id == 3
    assert not mask[1, 0]


def test_words_that_the_tokenizer_does_not_know_are_named() -> None:
    assert builder().unknown_words("a pink circle of squares") == ["pink", "of"]
    assert builder().unknown_words("two squares") == builder().unknown_words("") == []


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"captions \(1\) and image_ids \(2\)"):
        builder().training(CAPTIONS[:1], CODES)
    with pytest.raises(ValueError, match="supervise"):
        builder().training(CAPTIONS, CODES, "everything")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scale \(4\)"):
        builder().prompts(CAPTIONS, scale=4)


def test_words_that_would_train_as_the_unknown_token_are_refused() -> None:
    with pytest.raises(ValueError, match=r"caption \('two pentagons'\) holds words .* \['pentagons'\]"):
        builder().training(["two pentagons"], torch.zeros(1, 4, dtype=torch.long))
