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
        edit: the user's message where there are reference images, with `{instruction}`; their tokens follow it.
        before_references: what stands before the tokens of the reference images.
        after_references: what stands after them.
        system: the system message, None for none.
        chat: whether messages stand in the ChatML frame `<|im_start|>role ... <|im_end|>`; without it the user's
            message is the whole prompt.

    Raises:
        ValueError: if `generate` lacks `{caption}` or `edit` lacks `{instruction}`.
    """

    generate: str = "Please generate image based on the following caption: {caption}"
    edit: str = "Please edit this image according to the following instruction: {instruction}.\n"
    before_references: str = "<|vision_start|>"
    after_references: str = "<|vision_end|>"
    system: str | None = "You are a helpful assistant."
    chat: bool = True

    def __post_init__(self) -> None:
        """Checks the placeholders."""
        if "{caption}" not in self.generate:
            raise ValueError(f"generate ({self.generate!r}) must hold '{{caption}}'.")
        if "{instruction}" not in self.edit:
            raise ValueError(f"edit ({self.edit!r}) must hold '{{instruction}}'.")

    def prompt(self, caption: str) -> str:
        """Everything before the answer, of a caption."""
        before, after = self._frame()
        return before + self.generate.replace("{caption}", caption) + after

    def edit_prompt(self, instruction: str, marked: bool = True) -> tuple[str, str]:
        """Everything before the answer, of an instruction: what precedes and what follows the references' tokens.

        Args:
            instruction: what to change.
            marked: whether `before_references` and `after_references` stand there too.
        """
        before, after = self._frame()
        message = self.edit.replace("{instruction}", instruction)
        opening, closing = (self.before_references, self.after_references) if marked else ("", "")
        return before + message + opening, closing + after

    def _frame(self) -> tuple[str, str]:
        """What stands before and after the user's message."""
        if not self.chat:
            return "", ""
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system is not None else ""
        return f"{system}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

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

    def unknown_edit_words(self, instruction: str) -> list[str]:
        """Words and markers that the template puts around an instruction and the tokenizer lacks."""
        own = self.unknown_words(instruction)
        parts = self.template.edit_prompt(instruction)
        return [word for part in parts for word in self.unknown_words(part) if word not in own]

    def prompts(
        self,
        captions: Sequence[str],
        scale: int = 1,
        references: Tensor | Sequence[int] | None = None,
        *,
        known_words: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Prompts up to and including the scale token, left-padded: ids (B, T) int64 and mask (B, T) bool.

        Args:
            captions: B captions, or instructions where there are references.
            scale: pool scale of the image that is asked for.
            references: (B, R) codes of all reference images of each row, one image after the other; or the ids, markers
                included, that stand for the images of every row in a model that reads them itself.
            known_words: refuse a caption with a word that the text tokenizer lacks, as `training` does.

        Raises:
            ValueError: if the numbers of captions and references differ, or a word is refused.
        """
        opening = [self.vocabulary.image_start, self.vocabulary.scale(scale)]
        prompts = self._asked(captions, references)
        if known_words:
            self._refuse_unknown(captions, prompts)
        return self._left_pad([[*prompt, *opening] for prompt in prompts])

    def training(
        self,
        captions: Sequence[str],
        image_ids: Tensor,
        supervise: Supervise = "all",
        scale: int = 1,
        references: Tensor | Sequence[int] | None = None,
    ) -> Sequences:
        """Whole sequences with labels.

        Args:
            captions: B captions, or instructions where there are references.
            image_ids: (B, N) codes of the target images.
            supervise: where cross-entropy is taken: `all` tokens that are no padding (the published recipe), the
                `answer` from `<im_start>` on, or the `image` tokens alone.
            scale: pool scale of the codes.
            references: as in `prompts`; ids that only stand for images are not supervised.

        Raises:
            ValueError: if the numbers of captions and images differ, `supervise` is unknown, or the text tokenizer
                lacks a word of a caption.
        """
        if len(captions) != len(image_ids):
            raise ValueError(f"captions ({len(captions)}) and image_ids ({len(image_ids)}) must have one length.")
        if supervise not in ("all", "answer", "image"):
            raise ValueError(f"supervise ({supervise!r}) must be 'all', 'answer' or 'image'.")
        v, closing = self.vocabulary, self.text(self.template.closing)
        rows, starts = [], []
        prompts = self._asked(captions, references)
        self._refuse_unknown(captions, prompts)
        for prompt, codes in zip(prompts, image_ids.tolist(), strict=True):
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
        reference = (input_ids >= v.first_code) & (position < answer_start)
        if references is not None and not isinstance(references, Tensor):
            reference = torch.isin(input_ids, torch.tensor(references)) & (position < answer_start)
            supervised = supervised & ~reference
        labels = input_ids.masked_fill(~(mask & supervised), IGNORE_INDEX)
        sequences = Sequences(input_ids, mask, labels, condition.expand_as(input_ids), reference)
        return sequences.to(image_ids.device)

    def _asked(self, captions: Sequence[str], references: Tensor | Sequence[int] | None) -> list[list[int]]:
        """Ids of every prompt up to the answer."""
        if references is None:
            return [self.text(self.template.prompt(caption)) for caption in captions]
        if not isinstance(references, Tensor):
            frames = [self.template.edit_prompt(instruction, marked=False) for instruction in captions]
            return [[*self.text(before), *references, *self.text(after)] for before, after in frames]
        if len(references) != len(captions):
            raise ValueError(
                f"references holds {len(references)} rows for {len(captions)} instructions; give one each."
            )
        rows = []
        for instruction, codes in zip(captions, references.tolist(), strict=True):
            before, after = self.template.edit_prompt(instruction)
            rows.append([*self.text(before), *(code + self.vocabulary.first_code for code in codes), *self.text(after)])
        return rows

    def _refuse_unknown(self, captions: Sequence[str], prompts: list[list[int]]) -> None:
        """Raises where a caption could only be read as the unknown token, which would train without a word."""
        unknown = self.text_tokenizer.unk_token_id
        for caption, prompt in zip(captions, prompts, strict=True):
            if unknown is not None and unknown in prompt and (words := self.unknown_words(caption)):
                raise ValueError(f"caption ({caption!r}) holds words that the text tokenizer lacks: {words}; add them.")

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(width) >= (width - lengths)[:, None]
