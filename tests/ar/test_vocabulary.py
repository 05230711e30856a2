"""ImageVocabulary: the published order of the added ids."""

from __future__ import annotations

import pytest

from blip3o.ar import ImageVocabulary


def test_ids_stand_in_the_published_order() -> None:
    vocabulary = ImageVocabulary(text_size=100, num_codes=4)
    assert vocabulary.names() == ["<im_start>", "<im_end>", "<S0>", "<S1>", "<S2>", "<I0>", "<I1>", "<I2>", "<I3>"]
    ids = {name: 100 + index for index, name in enumerate(vocabulary.names())}
    assert vocabulary.image_start == ids["<im_start>"]
    assert vocabulary.image_end == ids["<im_end>"]
    assert [vocabulary.scale(scale) for scale in (1, 2, 3)] == [ids["<S0>"], ids["<S1>"], ids["<S2>"]]
    assert vocabulary.first_code == ids["<I0>"]
    assert vocabulary.size == 100 + len(vocabulary.names())


def test_the_published_sizes_fit() -> None:
    """65,536 codes after the 151,669 text ids of Qwen3."""
    vocabulary = ImageVocabulary(text_size=151_669, num_codes=65_536)
    assert (vocabulary.image_start, vocabulary.first_code, vocabulary.size) == (151_669, 151_674, 217_210)


@pytest.mark.parametrize("scale", [0, 4, -1])
def test_unknown_scales_are_refused(scale: int) -> None:
    with pytest.raises(ValueError, match=rf"scale \({scale}\) must lie in 1..3"):
        ImageVocabulary(text_size=10, num_codes=4).scale(scale)
