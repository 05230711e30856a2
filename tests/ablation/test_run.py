"""One run's process: whom it watches, and pictures of heads that start from no noise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blip3o import Blip3oNext, Blip3oPipeline
from blip3o.ablation import run
from blip3o.ablation.measure import draw_samples
from blip3o.bridge import MLPBridge
from blip3o.diffusion import TokenDecoderHead
from tests.tiny import PLAIN, WORDS, tiny_ar, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("rank", "watched"), [("0", 7), ("1", os.getppid())])
def test_a_helper_on_a_further_device_watches_who_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, watched: int
) -> None:
    done: list[object] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(run, "_watch", done.append)
    monkeypatch.setattr(run, "_fit", lambda folder: done.append("helped"))
    monkeypatch.setattr(run, "do", lambda folder, jobs: done.append("did"))
    assert run.main([str(tmp_path), "--parent", "7"]) == 0
    assert set(done) == {watched, "did" if rank == "0" else "helped"}


@pytest.mark.parametrize("decoder_only", [False, True])
def test_every_head_draws_its_samples(tmp_path: Path, decoder_only: bool) -> None:
    head = TokenDecoderHead(image_size=32)
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, head, PLAIN) if decoder_only else tiny_model()
    names = draw_samples(Blip3oPipeline(model), list(WORDS[:2]), tmp_path, seed=3)
    assert names == ["0.png", "1.png"] and all((tmp_path / name).is_file() for name in names)
