"""Parts filled from files and folders: ours, and those of the libraries that they wrap."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from blip3o.ar import CausalLM
from blip3o.bridge import MLPBridge
from blip3o.checkpoints import load_all_weights, load_weights, save_part
from blip3o.loading import listed
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from tests.checkpoints.test_ta_tok import args, saved, theirs
from tests.published import TEXT, released_pipeline
from tests.tiny import (
    PLAIN,
    WORDS,
    perturbed,
    seeded,
    tiny_ar,
    tiny_ar_config,
    tiny_head,
    tiny_images,
    tiny_model,
    tiny_tokenizer,
)


def language_model(folder: Path, **overrides: object) -> str:
    """A causal LM as transformers saves it, its table padded beyond the text tokenizer."""
    values = tiny_ar_config(vocab_size=TEXT + 9, **overrides)
    with seeded(7):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    perturbed(model, 7).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_fills_the_text_rows_and_image_rows_start_anew(tmp_path: Path, tied: bool) -> None:
    source = language_model(tmp_path / "lm", tie_word_embeddings=tied)
    given = AutoModelForCausalLM.from_pretrained(source)
    model = tiny_model()
    load_weights(model, "ar", source)
    own, theirs = model.ar.lm.state_dict(), given.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in theirs.items():
        rows = TEXT if "embed_tokens" in name or "lm_head" in name else len(tensor)
        assert torch.equal(own[name][:rows], tensor[:rows]), name
    table = own["lm_head.weight"]
    assert len(table) == TEXT + 5 + 64
    torch.testing.assert_close(table[TEXT:], table[:TEXT].mean(0).expand(5 + 64, -1))


def plain_model(ar: CausalLM) -> Blip3oNext:
    return Blip3oNext(tiny_tokenizer(), ar, MLPBridge, tiny_head(), PLAIN)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_folder_fills_an_ar_model_with_more_words(tmp_path: Path, tied: bool) -> None:
    """Every row goes where its token is; the rest of the model and what it computes stay the same."""
    held = plain_model(tiny_ar(tie_word_embeddings=tied))
    perturbed(held)
    folder = str(Blip3oPipeline(held).save_pretrained(tmp_path / "held"))
    model = plain_model(CausalLM(tiny_ar_config(tie_word_embeddings=tied), ["make", *reversed(WORDS), "remove"]))
    for name in ("tokenizer", "ar", "bridge", "diffusion"):
        load_weights(model, name, folder)
    text = held.ar.text_size
    own, theirs = model.ar.lm.state_dict(), held.ar.lm.state_dict()
    new = model.ar.text_tokenizer.convert_tokens_to_ids(["make", "remove"])
    torch.testing.assert_close(own["lm_head.weight"][new], theirs["lm_head.weight"][:text].mean(0).expand(2, -1))
    captions = ["a circle", "two red squares"]
    with torch.no_grad():
        losses = [one.eval().losses(tiny_images(2), captions, supervise="image") for one in (held, model)]
    assert torch.equal(losses[0].cross_entropy, losses[1].cross_entropy)


def test_words_that_an_ar_model_lacks_are_refused(tmp_path: Path) -> None:
    folder = str(Blip3oPipeline(tiny_model()).save_pretrained(tmp_path / "held"))
    fewer = plain_model(CausalLM(tiny_ar_config(), list(WORDS[:-1])))
    with pytest.raises(ValueError, match=rf"holds rows of \['{WORDS[-1]}'\] \(1 tokens\), which the AR model's"):
        load_weights(fewer, "ar", folder)


def test_image_rows_start_at_the_codes_where_they_are_as_wide(tmp_path: Path) -> None:
    from blip3o.tokenizers import SimVQ

    tokenizer = tiny_tokenizer(SimVQ(codebook_size=64, dim=32))
    model = Blip3oNext(tokenizer, tiny_ar(), MLPBridge, tiny_head(), PLAIN)
    perturbed(model.ar)
    load_weights(model, "ar", language_model(tmp_path / "lm"))
    codes = tokenizer.embed(torch.arange(64)[:, None])[:, 0]
    assert torch.equal(model.ar.embed(torch.arange(64) + model.ar.vocabulary.first_code), codes)  # type: ignore[union-attr]


def test_diffusers_folders_fill_denoiser_and_codec(tmp_path: Path) -> None:
    source, model = released_pipeline(seed=3).model, released_pipeline(seed=4).model
    source.diffusion.denoiser.transformer.save_pretrained(tmp_path / "transformer")
    source.diffusion.codec.vae.save_pretrained(tmp_path / "vae")
    load_weights(model, "diffusion.denoiser", str(tmp_path / "transformer"))
    load_weights(model, "diffusion.codec", str(tmp_path / "vae"))
    for name, tensor in source.diffusion.state_dict().items():
        assert torch.equal(model.diffusion.state_dict()[name], tensor), name


def test_model_folders_and_files_of_parts_fill_whole_parts_and_parts_of_them(tmp_path: Path) -> None:
    source, model = released_pipeline(seed=3).model, released_pipeline(seed=4, reference="width").model
    folder = str(released_pipeline(seed=3).save_pretrained(tmp_path / "model"))
    for name in ("tokenizer", "ar", "bridge", "diffusion.denoiser", "diffusion.codec"):
        load_weights(model, name, folder)
        wanted = source.get_submodule(name).state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.get_submodule(name).state_dict().items())
    save_part(released_pipeline(seed=5).model.bridge, tmp_path / "bridge.safetensors")
    load_weights(model, "bridge", str(tmp_path / "bridge.safetensors"))
    assert not torch.equal(model.bridge.layers[0].weight, source.bridge.layers[0].weight)
    with pytest.raises(ValueError, match=r"does not fit FlowHead: missing: reference_proj"):
        load_weights(model, "diffusion", folder)


def test_the_released_tokenizers_own_file_fills_it(tmp_path: Path) -> None:
    source, model = released_pipeline(seed=3).model, released_pipeline(seed=4).model
    path = saved({"model": {"args": args(), "sd": theirs(source.tokenizer)}}, tmp_path / "ta_tok.pth")
    load_weights(model, "tokenizer", str(path))
    for name, tensor in source.tokenizer.state_dict().items():
        if not name.startswith("input_"):  # images are taken in [-1, 1]
            assert torch.equal(model.tokenizer.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("brigde", "x", r"weights names 'brigde', which the model lacks; its parts are \['tokenizer', 'ar'"),
        ("ar", "nowhere", r"weights \(nowhere\) is unknown"),
        (
            "tokenizer",
            "nowhere",
            r"weights of tokenizer \(nowhere\) can not be read for a ConvTokenizer; name a \.safete",
        ),
        ("bridge", "none.safetensors", r"none\.safetensors is missing"),
    ],
)
def test_what_can_not_be_filled_is_told(name: str, source: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_weights(tiny_model(), name, source)


def test_a_language_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit the AR model's config: .*mis-shaped: .*gate_proj"):
        load_weights(model, "ar", language_model(tmp_path / "wide", intermediate_size=40))
    small = partial(language_model, tmp_path / "small")
    with pytest.raises(ValueError, match=r"does not fit the AR model's config: unexpected: model\.layers\.2"):
        load_weights(model, "ar", small(num_hidden_layers=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_part_whose_source_is_none_stays_as_it_is(tmp_path: Path) -> None:
    held, model = plain_model(tiny_ar()), plain_model(tiny_ar())
    perturbed(held)
    folder = str(Blip3oPipeline(held).save_pretrained(tmp_path / "held"))
    before = {name: tensor.clone() for name, tensor in model.ar.state_dict().items()}
    load_all_weights(model, {"ar": None, "bridge": folder})
    for name, tensor in model.ar.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in model.bridge.state_dict().items():
        assert torch.equal(tensor, held.bridge.state_dict()[name])


def test_of_many_missing_tensors_the_first_are_listed() -> None:
    names = [f"layer.{index}" for index in range(30)]
    assert listed(names[:3]) == "layer.0, layer.1, layer.2"
    assert listed(names).endswith("layer.10, layer.11 and 18 more")
