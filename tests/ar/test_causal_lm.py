"""CausalLM: the contract for several architectures, and how its vocabulary grows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.ar import CausalLM, word_tokenizer
from tests.ar.contract import CAPTIONS, NUM_CODES, ARBackboneContract
from tests.tiny import HIDDEN_SIZE, WORDS, rebuilt, seeded, tiny_ar

TEXT = 4 + len(WORDS)


class TestQwen3(ARBackboneContract):
    def backbone(self) -> CausalLM:
        return tiny_ar("qwen3")


class TestLlama(ARBackboneContract):
    def backbone(self) -> CausalLM:
        return tiny_ar("llama")


class TestTiedHead(ARBackboneContract):
    def backbone(self) -> CausalLM:
        return tiny_ar("qwen3", tie_word_embeddings=True)


class TestLearnedPositions(ARBackboneContract):
    """GPT-2 adds a table of absolute positions, which must count from the first token that is no padding."""

    def backbone(self) -> CausalLM:
        config = {"model_type": "gpt2", "n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 2, "n_positions": 96}
        with seeded(0):
            return CausalLM(config, list(WORDS))


class TestScaledAndCapped(ARBackboneContract):
    """Gemma 3 scales its embeddings, caps its logits and lets every other layer see a few positions alone."""

    def backbone(self) -> CausalLM:
        layers = ["sliding_attention", "full_attention"]
        return tiny_ar("gemma3_text", final_logit_softcapping=2.0, sliding_window=4, layer_types=layers)


class TestBiasedHead(ARBackboneContract):
    def backbone(self) -> CausalLM:
        config = {"model_type": "phi", "hidden_size": HIDDEN_SIZE, "intermediate_size": 48, "num_hidden_layers": 2}
        with seeded(0):
            return CausalLM(config | {"num_attention_heads": 2, "max_position_embeddings": 96}, list(WORDS))


def tables(backbone: CausalLM) -> list[torch.Tensor]:
    """Input and output embeddings."""
    return [backbone.lm.get_input_embeddings().weight.detach(), backbone.head.detach()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [TEXT, 64], ids=["exact", "padded table"])
def test_new_rows_start_at_the_mean_of_the_texts_rows_in_both_tables(tied: bool, vocab_size: int) -> None:
    backbone = tiny_ar(tie_word_embeddings=tied, vocab_size=vocab_size)
    before = [table.clone() for table in tables(backbone)]
    vocabulary = backbone.extend_vocabulary(NUM_CODES)
    for old, new in zip(before, tables(backbone), strict=True):
        assert new.shape == (vocabulary.size, HIDDEN_SIZE) == (TEXT + 5 + NUM_CODES, HIDDEN_SIZE)
        assert torch.equal(new[:TEXT], old[:TEXT])
        torch.testing.assert_close(new[TEXT:], old[:TEXT].mean(0).expand(5 + NUM_CODES, -1))
    shared = len({table.data_ptr() for table in tables(backbone)}) == 1
    assert shared is tied


def test_image_rows_start_at_the_codebook_where_it_has_the_hidden_width() -> None:
    codebook = torch.randn(NUM_CODES, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    backbone, plain = tiny_ar(), tiny_ar()
    first = backbone.extend_vocabulary(NUM_CODES, codebook=codebook).first_code
    plain.extend_vocabulary(NUM_CODES)
    for with_codes, without in zip(tables(backbone), tables(plain), strict=True):
        assert torch.equal(with_codes[first:], codebook)
        assert torch.equal(with_codes[:first], without[:first])


def test_a_codebook_of_another_width_is_left_aside() -> None:
    backbone, plain = tiny_ar(), tiny_ar()
    backbone.extend_vocabulary(NUM_CODES, codebook=torch.ones(NUM_CODES, HIDDEN_SIZE + 1))
    plain.extend_vocabulary(NUM_CODES)
    for one, other in zip(tables(backbone), tables(plain), strict=True):
        assert torch.equal(one, other)


def test_a_tied_head_stays_tied_when_it_is_trained_and_loaded() -> None:
    contract = TestTiedHead()
    backbone = contract.ready()
    assert backbone.head is backbone.lm.get_input_embeddings().weight
    again = rebuilt(backbone)
    again.extend_vocabulary(NUM_CODES)
    again.load_state_dict(backbone.state_dict())
    assert again.head is again.lm.get_input_embeddings().weight


def test_the_vocabulary_size_is_the_text_tokenizers_unless_given() -> None:
    assert len(tables(tiny_ar())[0]) == TEXT
    assert len(tables(tiny_ar(vocab_size=64))[0]) == 64


def test_configs_that_name_no_known_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match="must name a model_type"):
        CausalLM({"hidden_size": 8}, list(WORDS))
    with pytest.raises(ValueError, match="abacus"):
        CausalLM({"model_type": "abacus"}, list(WORDS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformers folder: a tiny qwen3 and the word tokenizer."""
    tiny_ar("qwen3", vocab_size=40, seed=5).lm.save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    return tmp_path


def test_from_pretrained_reads_weights_and_text_tokenizer(folder: Path) -> None:
    backbone = CausalLM.from_pretrained(str(folder)).eval()
    original = tiny_ar("qwen3", vocab_size=40, seed=5).eval()
    ids = backbone.text_tokenizer(CAPTIONS[1])["input_ids"]
    assert ids == original.text_tokenizer(CAPTIONS[1])["input_ids"]
    ids = torch.tensor([ids])
    assert torch.equal(backbone(ids).hidden, original(ids).hidden)
    backbone.extend_vocabulary(NUM_CODES)
    assert not any(parameter.is_meta for parameter in backbone.parameters())


def test_what_from_pretrained_read_can_be_built_from_its_config(folder: Path) -> None:
    backbone = CausalLM.from_pretrained(str(folder), dtype="float16")
    assert {p.dtype for p in backbone.parameters()} == {torch.float16}
    again = rebuilt(backbone)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in backbone.state_dict().items()
    }
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_from_pretrained_lists_weights_that_are_missing_or_unexpected(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["stray.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        CausalLM.from_pretrained(str(folder))
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(error.value)
    assert "unexpected: stray.weight" in str(error.value)


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        CausalLM.from_pretrained(str(tmp_path / "none"))
