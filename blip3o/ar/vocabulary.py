"""The id ranges that image generation adds to a text vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImageVocabulary:
    """Ids after the text vocabulary: `<im_start>`, `<im_end>`, scale tokens `<S0>`.., image tokens `<I0>`...

    Attributes:
        text_size: ids below this are text; the first added id.
        num_codes: codebook size of the image tokenizer.
        num_scales: number of scale tokens.
    """

    text_size: int
    num_codes: int
    num_scales: int = 3

    @property
    def image_start(self) -> int:
        """Id of `<im_start>`."""
        return self.text_size

    @property
    def image_end(self) -> int:
        """Id of `<im_end>`."""
        return self.text_size + 1

    def scale(self, scale: int = 1) -> int:
        """Id of the scale token of a pool scale, `<S0>` for 1.

        Raises:
            ValueError: if there is no such scale.
        """
        if not 1 <= scale <= self.num_scales:
            raise ValueError(f"scale ({scale}) must lie in 1..{self.num_scales}.")
        return self.text_size + 1 + scale

    @property
    def first_code(self) -> int:
        """Id of `<I0>`."""
        return self.text_size + 2 + self.num_scales

    @property
    def size(self) -> int:
        """All ids: text, markers, scales, codes."""
        return self.first_code + self.num_codes

    def names(self) -> list[str]:
        """The added tokens as text, in the order of their ids."""
        scales = [f"<S{index}>" for index in range(self.num_scales)]
        return ["<im_start>", "<im_end>", *scales, *(f"<I{index}>" for index in range(self.num_codes))]


def held_layout(text_tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Text size and number of scale tokens of a text tokenizer that holds the image tokens; None where it does not.

    Raises:
        ValueError: if it holds them in another order.
    """
    start, first_code = (_id_of(text_tokenizer, name) for name in ("<im_start>", "<I0>"))
    if start is None or first_code is None:
        return None
    layout = ImageVocabulary(start, 1, first_code - start - 2)
    for index, name in enumerate(layout.names()):
        if _id_of(text_tokenizer, name) != start + index:
            raise ValueError(
                f"the text tokenizer holds {name} as id {_id_of(text_tokenizer, name)}, not {start + index} after "
                "<im_start>; its image tokens must stand in the published order."
            )
    return start, layout.num_scales


def check_held(text_tokenizer: PreTrainedTokenizerBase, vocabulary: ImageVocabulary) -> None:
    """Raises a ValueError unless a text tokenizer that holds the image tokens holds those of `vocabulary`."""
    last, next_one = f"<I{vocabulary.num_codes - 1}>", f"<I{vocabulary.num_codes}>"
    if _id_of(text_tokenizer, last) != vocabulary.size - 1 or _id_of(text_tokenizer, next_one) is not None:
        told = {name: _id_of(text_tokenizer, name) for name in (last, next_one)}
        raise ValueError(
            f"the text tokenizer holds {told}, but {vocabulary.num_codes} codes from id {vocabulary.first_code} on end "
            f"at {vocabulary.size - 1}; use the tokenizer of these codes."
        )


def _id_of(text_tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Id of a token, None where the tokenizer lacks it."""
    found = text_tokenizer.convert_tokens_to_ids(name)
    return found if isinstance(found, int) and text_tokenizer.convert_ids_to_tokens(found) == name else None
