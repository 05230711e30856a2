"""Jacobi decoding through the pipeline, the command line, model folders and training settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from blip3o import Blip3oNext, Blip3oPipeline
from blip3o.ar import Sampling
from blip3o.bridge import MLPBridge
from blip3o.cli import main
from blip3o.images import read_settings
from blip3o.pipeline import GenerationDefaults
from blip3o.training.joint import JointModule
from tests.ar.backbones import causal
from tests.tiny import PLAIN, generators, tiny_head, tiny_tokenizer

PROMPTS = ["a red circle left of a blue square", "two green triangles", "a circle"]


def test_the_most_likely_pictures_are_the_same(tiny_pipe: Blip3oPipeline) -> None:
    given = {"temperature": 0.0, "output_type": "latent"}
    one = tiny_pipe(PROMPTS, generator=generators(3), **given)
    other = tiny_pipe(PROMPTS, generator=generators(3), decoding="jacobi", jacobi_window=5, **given)
    assert torch.equal(one.token_ids, other.token_ids)
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-3)


def test_pictures_are_drawn_again_from_their_seeds_and_alone(tiny_pipe: Blip3oPipeline) -> None:
    given = {"decoding": "jacobi", "token_guidance_scale": 1.5, "output_type": "latent"}
    together = tiny_pipe(PROMPTS, generator=generators(3), **given)
    for row, prompt in enumerate(PROMPTS):
        alone = tiny_pipe(prompt, generator=generators(1, row), **given)
        assert torch.equal(alone.token_ids[0], together.token_ids[row])
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=1e-3, atol=1e-3)


def test_passes_are_counted(tiny_pipe: Blip3oPipeline) -> None:
    greedy = Sampling(temperature=0.0)
    for sampling in (greedy, replace(greedy, decoding="jacobi")):
        passes = tiny_pipe.model.write(PROMPTS, sampling=sampling).num_forwards
        assert passes is not None and passes.shape == (3,)
        assert (passes == 16).all() if sampling == greedy else (passes <= 16).all() and (passes < 16).any()


def test_a_model_folder_holds_it_where_it_is_the_default(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    defaults = replace(tiny_pipe.defaults, decoding="jacobi", jacobi_window=4)
    folder = Blip3oPipeline(tiny_pipe.model, defaults).save_pretrained(tmp_path / "jacobi")
    assert Blip3oPipeline.from_pretrained(folder).defaults == defaults
    plain = tiny_pipe.save_pretrained(tmp_path / "plain")
    stored = yaml.safe_load((plain / "config.yaml").read_text())["generation"]
    assert stored["decoding"] == "sequential"


def test_the_command_tells_what_was_used(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = tmp_path / "a.png", ["generate", PROMPTS[0], "--model", str(tiny_folder)]
    assert main([*command, "--output", str(path), "--decoding", "jacobi"]) == 0
    settings = read_settings(path)
    assert settings["decoding"] == "jacobi" and settings["jacobi_window"] == GenerationDefaults().jacobi_window
    pipe = Blip3oPipeline.from_pretrained(settings.pop("model"))
    generator = torch.Generator().manual_seed(settings.pop("seed"))
    again = pipe(settings.pop("prompt"), generator=[generator], **settings).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(path)))
    assert main([*command, "--output", str(tmp_path / "b.png"), "--jacobi_window", "4"]) == 0
    assert read_settings(tmp_path / "b.png")["decoding"] == "sequential"
    capsys.readouterr()
    for wrong, told in (
        (["--decoding", "parallel"], "decoding ('parallel') must be one of ['sequential', 'jacobi']"),
        (["--jacobi_window", "1"], "jacobi_window (1) must be a whole number of at least 2"),
    ):
        assert main([*command, "--output", str(tmp_path / "c.png"), *wrong]) == 2
        assert told in capsys.readouterr().err


def test_training_settings_pass_it_on(tiny_pipe: Blip3oPipeline) -> None:
    module = JointModule(tiny_pipe.model, sampling=Sampling(top_k=0, decoding="jacobi", jacobi_window=4))
    assert module.generation_defaults.sampling == Sampling(top_k=0, decoding="jacobi", jacobi_window=4)


def test_what_was_used_is_recorded_where_the_model_decodes_otherwise_by_itself() -> None:
    """Settings over a model's own, recorded and laid over them again, are the same settings."""
    own = GenerationDefaults(decoding="jacobi", jacobi_window=4)
    used = own.updated(decoding="sequential")
    assert own.updated(**used.given()) == used
    assert GenerationDefaults.stored(GenerationDefaults(jacobi_window=4).given(), "x").jacobi_window == 4


def test_a_model_that_can_take_nothing_back_is_refused_before_it_trains() -> None:
    model = Blip3oNext(tiny_tokenizer(), causal("mamba2"), MLPBridge, tiny_head(), PLAIN)
    with pytest.raises(ValueError, match=r"decoding \('jacobi'\) takes back .* model_type \(mamba2\)"):
        JointModule(model, sampling=Sampling(decoding="jacobi"))
