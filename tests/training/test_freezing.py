"""freeze: what matches trains, everything else does not, and a pattern that matches nothing is an error."""

from __future__ import annotations

import pytest

from blip3o.training.freezing import freeze
from tests.tiny import tiny_model


def test_what_matches_a_pattern_trains_and_all_else_is_frozen() -> None:
    model = tiny_model()
    names = freeze(model, ["bridge.*", "diffusion.denoiser.embed_cond.*"])
    expected = {name for name, _ in model.bridge.named_parameters(prefix="bridge")}
    expected |= {"diffusion.denoiser.embed_cond.weight", "diffusion.denoiser.embed_cond.bias"}
    assert set(names) == expected == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == len(expected)


def test_the_last_call_decides() -> None:
    model = tiny_model()
    freeze(model, ["bridge.*"])
    assert all(name.startswith("ar.") for name in freeze(model, ["ar.*"]))
    assert not any(p.requires_grad for p in model.bridge.parameters())
    assert all(p.requires_grad for p in model.ar.parameters())


def test_patterns_distinguish_upper_and_lower_case_and_match_whole_names() -> None:
    model = tiny_model()
    for pattern in ("Bridge.*", "bridge", "layers.0.weight"):
        with pytest.raises(ValueError, match="match no parameter"):
            freeze(model, [pattern])


def test_a_pattern_that_matches_nothing_is_named_and_changes_nothing() -> None:
    model = tiny_model()
    freeze(model, ["bridge.*"])
    with pytest.raises(ValueError, match=r"\['brigde\.\*'\].*'bridge\.\*'"):
        freeze(model, ["ar.*", "brigde.*"])
    assert all(p.requires_grad for p in model.bridge.parameters())
    assert not any(p.requires_grad for p in model.ar.parameters())


def test_no_pattern_freezes_everything() -> None:
    model = tiny_model()
    assert freeze(model, []) == []
    assert not any(p.requires_grad for p in model.parameters())
