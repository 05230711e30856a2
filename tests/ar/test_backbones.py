"""Every language model that is claimed: its caches, its logits, padding, and saving with a whole model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip3o import Blip3oPipeline
from blip3o.ar import ARBackbone, CausalLM, word_tokenizer
from blip3o.ar.kernel_advice import hide_kernel_advice
from blip3o.bridge import MLPBridge
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from tests.ar.backbones import CAUSAL, VISION, causal, vision
from tests.ar.contract import CAPTIONS, GREEDY, NUM_CODES, ARBackboneContract
from tests.tiny import PLAIN, WORDS, generators, perturbed, tiny_head, tiny_tokenizer


class TestGemma3(ARBackboneContract):
    """Scaled embeddings, a sliding window shorter than the prompts, capped logits."""

    def backbone(self) -> CausalLM:
        return causal("gemma3_text")


class TestMamba2(ARBackboneContract):
    """No attention, no positions, no limit: a state alone."""

    def backbone(self) -> CausalLM:
        return causal("mamba2")


class TestFalconH1(ARBackboneContract):
    """Attention and a state-space model side by side in every layer."""

    def backbone(self) -> CausalLM:
        return causal("falcon_h1")


class _Same(ARBackboneContract):
    """The parts of the contract that tell architectures apart, for one of many."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def backbone(self) -> CausalLM:
        return causal(self.model_type)


@pytest.mark.parametrize("model_type", sorted(CAUSAL))
def test_decoding_with_its_own_cache_equals_a_whole_pass_and_rows_stay_apart(model_type: str) -> None:
    contract = _Same(model_type)
    contract.test_what_decoding_kept_equals_a_second_pass(CAPTIONS, GREEDY)
    contract.test_a_row_of_a_padded_batch_equals_the_row_alone()
    contract.test_its_config_builds_it_again()


@pytest.mark.parametrize("model_type", sorted(CAUSAL))
@torch.no_grad()
def test_logits_are_the_models_own(model_type: str) -> None:
    """With caps, scales and biases; large states make them show."""
    contract = _Same(model_type)
    backbone = perturbed(contract.ready(), seed=1, std=0.3)
    ids, mask = contract.prompts(backbone)
    own = backbone.lm(input_ids=ids[1:2], use_cache=False).logits
    assert mask[1].all()
    for first, last in ((0, own.shape[-1]), (3, 9)):
        ours = backbone(ids[1:2], logits_for=(first, last)).logits
        torch.testing.assert_close(ours, own[..., first:last], rtol=1e-5, atol=1e-5)


def _model(ar: ARBackbone) -> Blip3oNext:
    model = Blip3oNext(tiny_tokenizer(), ar, MLPBridge, tiny_head(), PLAIN)
    perturbed(model.ar)
    return model.eval()


@pytest.mark.parametrize("model_type", [*sorted(CAUSAL), *sorted(VISION)])
def test_a_saved_model_loads_and_makes_the_same_images(model_type: str, tmp_path: Path) -> None:
    ar = causal(model_type) if model_type in CAUSAL else vision(model_type)
    pipe = Blip3oPipeline(_model(ar), GenerationDefaults(num_inference_steps=1, top_k=0))
    again = Blip3oPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    assert again.model.config() == _with_text_tokenizer(pipe.model.config(), again)
    one, two = (p(list(CAPTIONS[:2]), generator=generators(2), output_type="latent") for p in (pipe, again))
    assert torch.equal(one.token_ids, two.token_ids) and torch.equal(one.latents, two.latents)


def _with_text_tokenizer(config: dict[str, Any], saved: Blip3oPipeline) -> dict[str, Any]:
    """A folder holds its own text tokenizer in place of the words."""
    config["init_args"]["ar"]["init_args"]["text_tokenizer"] = saved.model.ar.init_args["text_tokenizer"]
    return config


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mamba2", "falcon_h1", "qwen3_next"])
def test_from_a_transformers_folder(model_type: str, tmp_path: Path) -> None:
    original = perturbed(causal(model_type))
    original.lm.save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    contract = _Same(model_type)
    loaded = CausalLM.from_pretrained(str(tmp_path))
    for backbone in (original, loaded):
        backbone.extend_vocabulary(NUM_CODES)
        perturbed(backbone, seed=1, std=0.2).eval()
    one, two = contract.generate(original), contract.generate(loaded)
    assert torch.equal(one.ids, two.ids)
    torch.testing.assert_close(one.hidden, two.hidden, rtol=1e-5, atol=1e-5)
    again = CausalLM(**loaded.init_args)
    assert {k: v.shape for k, v in again.lm.state_dict().items()} == {
        k: v.shape for k, v in causal(model_type).lm.state_dict().items()
    }


def test_a_model_that_takes_padding_into_its_state_reads_rows_of_one_length_alone() -> None:
    """Biases of its convolution turn the zeros at padding into numbers, also those that are zero at first."""
    contract = _Same("lfm2")
    backbone = causal("lfm2", conv_bias=True).eval()
    backbone.extend_vocabulary(NUM_CODES)
    ids, mask = contract.prompts(backbone)
    with pytest.raises(ValueError, match=r"model_type \(lfm2\) takes padding into its state; give rows of one length"):
        backbone.generate(ids, mask, 2, GREEDY)
    with pytest.raises(ValueError, match="give rows of one length"):
        backbone(ids, mask)
    alike = contract.prompts(backbone, ("a red circle", "a green square"))
    assert backbone.generate(*alike, 2, GREEDY).ids.shape == (2, 2)


def test_the_trial_leaves_the_weights_and_the_mode_as_they_were() -> None:
    backbone = causal("mamba2")
    assert all(module.training for module in backbone.modules())
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone._check()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2}, "keeps its state in none of"),
        ({"model_type": "mamba2", "max_position_embeddings": 9}, "does not know: max_position_embeddings"),
        (
            {"model_type": "xlstm", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2},
            "needs a cache of its own",
        ),
    ],
)
def test_models_that_can_not_be_read_are_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CausalLM(config, list(WORDS))


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "mamba", "mamba2", "falcon_h1", "qwen3_next"])
@torch.no_grad()
def test_layers_are_counted_from_the_input_embeddings_to_the_final_norm(model_type: str) -> None:
    contract = _Same(model_type)
    contract.test_layers_are_kept_in_the_same_pass()
    backbone = contract.ready()
    ids, mask = contract.prompts(backbone)
    layers = backbone(ids, mask, layers=[0, 1, 2]).layers
    second = backbone.lm.get_decoder().layers[1]
    seen: list[torch.Tensor] = []
    hook = second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(ids, mask)
    hook.remove()
    scale = getattr(backbone.lm.get_decoder(), "embedding_multiplier", 1.0)
    torch.testing.assert_close(layers[:, 0], backbone.embed(ids) * scale)
    torch.testing.assert_close(layers[:, 1], seen[0])


def test_the_head_has_a_bias_where_the_model_has_one() -> None:
    head = causal("phi").lm.get_output_embeddings()
    assert isinstance(head, nn.Linear) and head.bias is not None


def test_advice_on_gpu_kernels_is_hidden_where_there_is_no_gpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_kernel_advice()
    logger = logging.getLogger("transformers.integrations.hub_kernels")
    monkeypatch.setattr(logger, "parent", logging.getLogger())  # transformers' own loggers do not propagate
    advice = "`f` is falling back to its reference PyTorch implementation because `g` is not installed."
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        logger.warning(advice)
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else", advice, "something else"]
