"""The id ranges that image generation adds to a text vocabulary."""

from __future__ import annotations

from dataclasses import dataclass


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
