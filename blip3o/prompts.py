"""Wording and layout of the sequences: what the AR model reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blip3o.ar.vocabulary import ImageVocabulary
from blip3o.structures import IGNORE_INDEX, Sequences

Supervise = Literal["all", "answer", "image"]


@dataclass(frozen=True)
class PromptTemplate:
    """How a caption becomes a prompt; the defaults are the published wording.

    Attributes:
        generate: the user's message, with `{caption}`.
        system: the system message, None for none.
        chat: whether messages stand in the ChatML frame `<|im_start|>role ... <|im_end|>`; without it the user's
            message is the whole prompt.

    Raises:
        ValueError: if `generate` lacks `{caption}`.
    """

    generate: str = "Please generate image based on the following caption: {caption}"
    system: str | None = "You are a helpful assistant."
    chat: bool = True

    def __post_init__(self) -> None:
        """Checks the placeholder."""
        if "{caption}" not in self.generate:
            raise ValueError(f"generate ({self.generate!r}) must hold '{{caption}}'.")

    def prompt(self, caption: str) -> str:
        """Everything before the answer."""
        message = self.generate.replace("{caption}", caption)
        if not self.chat:
            return message
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system is not None else ""
        return f"{system}<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def closing(self) -> str:
        """Everything after the answer."""
        return "<|im_end|>\n" if self.chat else ""


class SequenceBuilder:
    """Builds prompts and training sequences over the extended vocabulary.

    Args:
        text_tokenizer: reads the text.
        vocabulary: id ranges of the image tokens.
        template: the wording.
    """

    def __init__(
        self, text_tokenizer: PreTrainedTokenizerBase, vocabulary: ImageVocabulary, template: PromptTemplate
    ) -> None:
        self.text_tokenizer = text_tokenizer
        self.vocabulary = vocabulary
        self.template = template
        pad = text_tokenizer.pad_token_id
        self.pad_id = int(pad if isinstance(pad, int) else (text_tokenizer.eos_token_id or 0))

    def text(self, text: str) -> list[int]:
        """Ids of a text, special tokens read from it but none added."""
        return [int(i) for i in self.text_tokenizer(text, add_special_tokens=False)["input_ids"]]

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the tokenizer can only read as its unknown token."""
        unknown = self.text_tokenizer.unk_token_id
        return [word for word in text.split() if unknown is not None and unknown in self.text(word)]

    def prompts(self, captions: Sequence[str], scale: int = 1) -> tuple[Tensor, Tensor]:
        """Prompts up to and including the scale token, left-padded: ids (B, T) int64 and mask (B, T) bool."""
        opening = [self.vocabulary.image_start, self.vocabulary.scale(scale)]
        return self._left_pad([[*self.text(self.template.prompt(c)), *opening] for c in captions])

    def training(
        self, captions: Sequence[str], image_ids: Tensor, supervise: Supervise = "all", scale: int = 1
    ) -> Sequences:
        """Whole sequences with labels.

        Args:
            captions: B captions.
            image_ids: (B, N) codes of the target images.
            supervise: where cross-entropy is taken: `all` tokens that are no padding (the published recipe), the
                `answer` from `<im_start>` on, or the `image` tokens alone.
            scale: pool scale of the codes.

        Raises:
            ValueError: if the numbers of captions and images differ, or `supervise` is unknown.
        """
        if len(captions) != len(image_ids):
            raise ValueError(f"captions ({len(captions)}) and image_ids ({len(image_ids)}) must have one length.")
        if supervise not in ("all", "answer", "image"):
            raise ValueError(f"supervise ({supervise!r}) must be 'all', 'answer' or 'image'.")
        v, closing = self.vocabulary, self.text(self.template.closing)
        rows, starts = [], []
        for caption, codes in zip(captions, image_ids.tolist(), strict=True):
            prompt = self.text(self.template.prompt(caption))
            answer = [v.image_start, v.scale(scale), *(code + v.first_code for code in codes), v.image_end]
            rows.append([*prompt, *answer, *closing])
            starts.append(len(answer) + len(closing))
        input_ids, mask = self._left_pad(rows)
        position = torch.arange(input_ids.shape[1])
        # Distance of <im_start> from the right end is the same in every row.
        answer_start = input_ids.shape[1] - starts[0]
        image = (position >= answer_start + 2) & (position < answer_start + 2 + image_ids.shape[1])
        condition = (position == answer_start + 1) | image
        supervised = {"all": position >= 0, "answer": position >= answer_start, "image": image}[supervise]
        labels = input_ids.masked_fill(~(mask & supervised), IGNORE_INDEX)
        sequences = Sequences(input_ids, mask, labels, condition.expand_as(input_ids))
        return sequences.to(image_ids.device)

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(width) >= (width - lengths)[:, None]
