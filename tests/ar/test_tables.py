"""The tables that grow: several architectures, padded and tied tables, biased heads, and the logits they give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from blip3o.ar import CausalLM, ImageVocabulary, word_tokenizer
from blip3o.ar.tables import head_of
from tests.tiny import HIDDEN_SIZE, WORDS, perturbed, rebuilt, seeded, tiny_ar, tiny_ar_config

TEXT, CODES = 4 + len(WORDS), 10
SMALL = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": tiny_ar_config("qwen3"),
    "llama, tied": tiny_ar_config("llama", tie_word_embeddings=True),
    "gpt2, tied": {"model_type": "gpt2", "n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "gemma, scales its embeddings": tiny_ar_config("gemma", tie_word_embeddings=True),
    "gemma2, caps its logits": tiny_ar_config("gemma2", final_logit_softcapping=0.5, tie_word_embeddings=True),
    "gemma3_text, both": tiny_ar_config("gemma3_text", final_logit_softcapping=0.5, tie_word_embeddings=True),
    "phi, has a bias": {"model_type": "phi", **SMALL, "max_position_embeddings": 96},
    "granite, divides its logits": tiny_ar_config("granite", logits_scaling=8.0) | {"head_dim": None},
    "cohere, multiplies its logits": {"model_type": "cohere", **SMALL, "logit_scale": 0.25},
}


def backbone(name: str, **arguments: Any) -> CausalLM:
    config = {key: value for key, value in CONFIGS[name].items() if value is not None}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    attention = "eager" if config["model_type"] == "gemma2" else "sdpa"
    with seeded(0):
        return CausalLM(ends | config, list(WORDS), attention, **arguments)


def tables(backbone: CausalLM) -> list[Tensor]:
    """Input and output embeddings, and the head's bias where there is one."""
    head = head_of(backbone.lm)
    return [t for t in (backbone.lm.get_input_embeddings().weight, head.weight, head.bias) if t is not None]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_the_models_own_over_the_ids_asked_for(name: str) -> None:
    model = backbone(name)
    vocabulary = model.extend_vocabulary(CODES)
    perturbed(model, std=0.3).eval()
    ids = torch.randint(vocabulary.size, (2, 7), generator=torch.Generator().manual_seed(0))
    own = model.lm(input_ids=ids).logits
    assert own.shape[-1] == vocabulary.size and own.std() > 0.05
    for first, last in ((0, vocabulary.size), (vocabulary.first_code, vocabulary.size), (3, 5)):
        logits = model(ids, logits_for=(first, last)).logits
        torch.testing.assert_close(logits, own[..., first:last], rtol=1e-4, atol=1e-5)
    embedded = model(ids, logits_for=(0, vocabulary.size), inputs_embeds=model.embed(ids)).logits
    torch.testing.assert_close(embedded, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("vocab_size", "table_size"), [(None, None), (TEXT + 6, None), (96, None), (96, 96)])
def test_every_new_row_of_every_table_starts_at_the_mean_of_the_text(
    name: str, vocab_size: int | None, table_size: int | None
) -> None:
    """Exact tables; padded ones, as Qwen's 151,936 rows for 151,669 tokens; ones larger than the whole vocabulary."""
    sizes = {} if vocab_size is None else {"vocab_size": vocab_size}
    plain = backbone(name).init_args
    model = perturbed(CausalLM(plain["config"] | sizes, list(WORDS), plain["attention"], table_size=table_size))
    before = [table.detach().clone() for table in tables(model)]
    vocabulary = model.extend_vocabulary(CODES)
    assert vocabulary == ImageVocabulary(TEXT, CODES)
    for old, new in zip(before, tables(model), strict=True):
        assert len(new) == (table_size or vocabulary.size)
        assert torch.equal(new[:TEXT], old[:TEXT])
        wanted = old[:TEXT].mean(0).expand_as(new[TEXT:])
        torch.testing.assert_close(new[TEXT:].detach(), wanted, rtol=1e-5, atol=1e-6)


def test_the_mean_is_taken_in_float32() -> None:
    model = backbone("qwen3").to(torch.bfloat16)
    table = tables(model)[0].detach()
    table[:, 0] = torch.linspace(1, 1.01, TEXT)
    table[0, 0] = 300.0  # sums of these are not exact in bfloat16
    wanted = table[:TEXT].double().mean(0).to(torch.bfloat16)
    model.extend_vocabulary(CODES)
    assert torch.equal(tables(model)[0][-1], wanted)


def test_the_codebook_fills_the_image_rows_alone_also_in_a_larger_table() -> None:
    codebook = torch.randn(CODES, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    for name in ("qwen3", "phi, has a bias", "gemma3_text, both"):
        model = backbone(name, table_size=64)
        first = model.extend_vocabulary(CODES, codebook=codebook).first_code
        for table in tables(model)[:2]:
            assert torch.equal(table[first : first + CODES], codebook)
            assert torch.equal(table[-1], table[TEXT]) and not torch.equal(table[-1], codebook[-1])


def test_a_table_smaller_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"table_size \({TEXT}\) must be at least {TEXT + 5 + CODES}"):
        backbone("qwen3", table_size=TEXT).extend_vocabulary(CODES)


def assigned(model: CausalLM, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state, assign=True)


def copied(model: CausalLM, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state)


@pytest.mark.parametrize("load", [assigned, copied])
@pytest.mark.parametrize("stored", ["both", "input alone", "output alone"])
@pytest.mark.parametrize("name", ["llama, tied", "gpt2, tied", "gemma3_text, both"])
def test_a_tied_table_stays_one_however_it_is_stored_and_loaded(
    name: str, stored: str, load: Callable[[CausalLM, dict[str, Tensor]], None]
) -> None:
    model = backbone(name)
    model.extend_vocabulary(CODES)
    assert tables(model)[0] is tables(model)[1]
    state = {key: value.detach().clone() for key, value in perturbed(model).state_dict().items()}
    embeddings = next(key for key in state if key.endswith(("embed_tokens.weight", "wte.weight")))
    if stored != "both":
        del state["lm.lm_head.weight" if stored == "input alone" else embeddings]
    again = backbone(name)
    again.extend_vocabulary(CODES)
    load(again, state)
    assert tables(again)[0] is tables(again)[1]
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        tables(again)[0].zero_()
    assert not tables(again)[1].any(), "training one would leave the other behind"


def test_a_copy_of_a_tied_model_ties_its_own_table() -> None:
    model = backbone("llama, tied")
    model.extend_vocabulary(CODES)
    other = copy.deepcopy(model)
    other.load_state_dict({key: value + 1 for key, value in model.state_dict().items()}, assign=True)
    assert tables(other)[0] is tables(other)[1] is not tables(model)[0]
    assert torch.equal(tables(other)[0], tables(model)[0] + 1)


def test_two_different_tables_of_a_tied_head_are_refused() -> None:
    model = backbone("llama, tied")
    model.extend_vocabulary(CODES)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["lm.lm_head.weight"][3] += 1
    with pytest.raises(ValueError, match=r"lm\.model\.embed_tokens\.weight and lm\.lm_head\.weight differ"):
        model.load_state_dict(state)


def test_an_untied_head_that_lacks_its_table_is_missing_it() -> None:
    model = tiny_ar()
    state = model.state_dict()
    del state["lm.lm_head.weight"]
    with pytest.raises(RuntimeError, match=r"lm\.lm_head\.weight"):
        model.load_state_dict(state)


def test_a_tied_head_survives_transformers_own_saving(tmp_path: Path) -> None:
    model = backbone("llama, tied")
    model.extend_vocabulary(CODES)
    perturbed(model).lm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, model.head)


def holding(num_scales: int, num_codes: int, *, first: list[str] | None = None) -> PreTrainedTokenizerFast:
    """The word tokenizer, to which the image tokens were added."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.add_tokens(first or ImageVocabulary(TEXT, num_codes, num_scales).names(), special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("num_scales", [1, 2, 3, 5])
def test_a_text_tokenizer_that_holds_the_image_tokens_decides_where_they_stand(tmp_path: Path, num_scales: int) -> None:
    holding(num_scales, CODES).save_pretrained(tmp_path)
    for text_size in (None, TEXT):
        model = CausalLM(tiny_ar_config(), str(tmp_path), text_size=text_size)
        vocabulary = model.extend_vocabulary(CODES)
        assert vocabulary == ImageVocabulary(TEXT, CODES, num_scales)
        assert len(tables(model)[0]) == len(model.text_tokenizer) == vocabulary.size
        names = model.text_tokenizer.convert_ids_to_tokens(list(range(TEXT, vocabulary.size)))
        assert names == vocabulary.names()
        assert model.extend_vocabulary(CODES, 3) is vocabulary
    again = rebuilt(model)
    assert again.extend_vocabulary(CODES) == vocabulary


def test_image_tokens_elsewhere_or_of_another_number_are_refused(tmp_path: Path) -> None:
    holding(3, CODES).save_pretrained(tmp_path / "held")
    with pytest.raises(ValueError, match=rf"text_size \({TEXT - 1}\) must be {TEXT}, the first image token"):
        CausalLM(tiny_ar_config(), str(tmp_path / "held"), text_size=TEXT - 1)
    for codes in (CODES - 1, CODES + 1):
        with pytest.raises(ValueError, match=f"<I{codes - 1}>.*{codes} codes from id {TEXT + 5}"):
            CausalLM(tiny_ar_config(), str(tmp_path / "held")).extend_vocabulary(codes)
    holding(3, 1, first=["<im_start>", "<S0>", "<im_end>", "<I0>"]).save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"must stand in the published order"):
        CausalLM(tiny_ar_config(), str(tmp_path / "mixed"))


def test_a_stray_marker_is_an_ordinary_text_token(tmp_path: Path) -> None:
    holding(3, 1, first=["<im_start>"]).save_pretrained(tmp_path)
    assert isinstance(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer)
    assert CausalLM(tiny_ar_config(), str(tmp_path)).extend_vocabulary(CODES).text_size == TEXT + 1
