"""LogitShape: read off a model's own forward pass, whatever the architecture calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from blip3o.ar.logits import LogitShape, read_logit_shape

SMALL = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 24},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
}


def built(model_type: str, **overrides: Any) -> Any:
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {k: v for k, v in SMALL.items() if k != "head_dim" or model_type not in ("cohere", "granite")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **ends, **sizes, **overrides))


@pytest.mark.parametrize(
    ("model_type", "overrides", "wanted"),
    [
        ("qwen3", {}, LogitShape()),
        ("mixtral", {}, LogitShape()),
        ("gemma2", {}, LogitShape(cap=30.0)),
        ("gemma2", {"final_logit_softcapping": None}, LogitShape()),
        ("gemma3_text", {"final_logit_softcapping": 7.5}, LogitShape(cap=7.5)),
        ("granite", {"logits_scaling": 8.0}, LogitShape(0.125)),
        ("cohere", {"logit_scale": 0.3}, LogitShape(0.3)),
    ],
)
def test_it_is_read_off_the_model(model_type: str, overrides: dict[str, Any], wanted: LogitShape) -> None:
    lm = built(model_type, **overrides)
    assert read_logit_shape(lm) == wanted
    decoder = lm.get_decoder()
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert lm(ids).logits.shape == (1, 2, 24) and lm.get_decoder() is decoder, "reading changed the model"


def test_a_model_without_weights_can_be_read() -> None:
    with torch.device("meta"):
        assert read_logit_shape(built("gemma2")) == LogitShape(cap=30.0)


class Squared(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.square()
        return output


class Strange(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("images")


def test_what_is_no_factor_and_soft_cap_is_refused() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    with pytest.raises(ValueError, match="which is no factor and soft cap"):
        read_logit_shape(Squared(config))
    with pytest.raises(ValueError, match=r"can not see how Strange makes its logits \(KeyError"):
        read_logit_shape(Strange(config))


def test_hooks_of_the_decoder_are_not_run() -> None:
    lm = built("qwen3")

    def fail(*args: Any) -> None:
        raise AssertionError("a hook ran")

    lm.get_decoder().register_forward_hook(fail)
    lm.register_forward_pre_hook(fail)
    assert read_logit_shape(lm) == LogitShape()
    assert isinstance(lm.get_output_embeddings(), nn.Linear)
