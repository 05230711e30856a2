"""The lean step: taken where it may be, it gives what the model's own pass gives; elsewhere it is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.ar import CausalLM, Sampling
from blip3o.ar import causal_lm as module
from blip3o.ar.lean import fits
from blip3o.ar.packing import FEWEST_ROWS, PACKED_FROM, packs, product, stacked
from blip3o.structures import Generated
from tests.ar.contract import CAPTIONS, GREEDY, ARBackboneContract
from tests.tiny import WORDS, generators, seeded, tiny_ar, tiny_ar_config

NUM_TOKENS = PACKED_FROM + 2  # enough to pack
KNOWN: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3 grouped": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "qwen3 biased": {"attention_bias": True},
    "qwen2": {"head_dim": None},
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama biased": {"attention_bias": True, "mlp_bias": True, "num_attention_heads": 4},
    "lfm2": {"head_dim": None, "layer_types": ["conv", "full_attention"]},
    "lfm2 biased": {
        "head_dim": None,
        "layer_types": ["full_attention", "conv"],
        "conv_bias": True,
        "conv_L_cache": 40,
    },
}


class _Ready(ARBackboneContract):
    def __init__(self, name: str, **overrides: Any) -> None:
        model_type = name.split()[0]
        values = tiny_ar_config(model_type, **KNOWN.get(name, {}), **overrides)
        self.config = {key: value for key, value in values.items() if value is not None}

    def backbone(self) -> CausalLM:
        with seeded(0):
            return CausalLM(self.config, list(WORDS))


def decoded(backbone: CausalLM, captions: tuple[str, ...], sampling: Sampling = GREEDY, **given: Any) -> Generated:
    prompts = _Ready("qwen3").prompts(backbone, captions)
    return backbone.generate(*prompts, NUM_TOKENS, sampling, generators(len(captions)), **given)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Generated, Generated]]:
    """Decodes by the lean step and by the model's own forward pass."""

    def run(backbone: CausalLM, *given: Any, **named: Any) -> tuple[Generated, Generated]:
        assert fits(backbone.lm)
        lean = decoded(backbone, *given, **named)
        with monkeypatch.context() as patch:
            patch.setattr(module, "fits", lambda lm: False)
            return lean, decoded(backbone, *given, **named)

    return run


BATCHES = {"one": CAPTIONS[:1], "padded": CAPTIONS, "equal prompts": CAPTIONS * 2}
CASES = [(name, batch) for name in sorted(KNOWN) for batch in BATCHES if name != "lfm2 biased" or batch == "one"]
"""Families and batches; LFM2 with biases takes padding into its state, and padded batches are refused."""


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_it_gives_what_the_models_own_pass_gives(name: str, batch: str, both: Any) -> None:
    backbone, captions = _Ready(name).ready(), BATCHES[batch]
    for sampling in (GREEDY, Sampling(temperature=1.5, top_k=4, top_p=0.9)):
        lean, library = both(backbone, captions, sampling, layers=[0, 1, -1])
        assert torch.equal(lean.ids, library.ids)
        assert sampling == GREEDY or len(lean.ids.unique()) > 2
        for one, other in (
            (lean.hidden, library.hidden),
            (lean.log_probs, library.log_probs),
            (lean.layers, library.layers),
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_token_guidance_and_rows_beyond_the_packed_ones(both: Any) -> None:
    backbone = _Ready("qwen3").ready()
    negative = _Ready("qwen3").prompts(backbone, ("a",) * 3)
    lean, library = both(backbone, CAPTIONS, negative=negative, token_guidance_scale=2.0)
    assert torch.equal(lean.ids, library.ids)
    torch.testing.assert_close(lean.hidden, library.hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lowered", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("name", ["qwen3", "lfm2"])
def test_in_bfloat16_it_differs_by_rounding_alone(name: str, lowered: bool, both: Any) -> None:
    backbone = _Ready(name).ready()
    if not lowered:
        backbone.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        lean, library = both(backbone, CAPTIONS[:1])
    assert lean.hidden.dtype == library.hidden.dtype
    same = (lean.ids != library.ids)[0].long().cumsum(0) == 0  # up to the first id that rounding moved
    assert same[:3].all()
    kept = torch.cat([same.new_ones(1), same])
    difference = (lean.hidden.float() - library.hidden.float())[0][kept].abs().max()
    assert difference < 0.1 * library.hidden.float().abs().max()


def test_its_states_can_be_trained_on() -> None:
    backbone = _Ready("qwen3").ready()
    hidden = decoded(backbone, CAPTIONS).hidden
    assert not hidden.is_inference()
    layer = nn.Linear(hidden.shape[-1], 1)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()


def test_it_reads_the_weights_anew_at_every_call() -> None:
    backbone = _Ready("qwen3").ready()
    before = decoded(backbone, CAPTIONS)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.data.mul_(1.5)
    assert not torch.equal(before.hidden[:, 1:], decoded(backbone, CAPTIONS).hidden[:, 1:])


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _hooked(backbone: CausalLM) -> None:
    backbone.lm.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def _wrapped(backbone: CausalLM) -> None:
    backbone.lm.model.layers[1].self_attn.q_proj.__class__ = _Doubled


def _patched(backbone: CausalLM) -> None:
    norm = backbone.lm.model.norm
    norm.forward = lambda x: 2 * x  # type: ignore[method-assign]


def _dropping(backbone: CausalLM) -> None:
    backbone.lm.config.attention_dropout = 0.5
    backbone.train()


def _mixed(backbone: CausalLM) -> None:
    backbone.lm.model.layers[0].double()


@pytest.mark.parametrize("change", [_hooked, _wrapped, _patched, _dropping, _mixed])
def test_a_model_that_was_changed_goes_through_its_own_pass(change: Callable[[CausalLM], None]) -> None:
    backbone = _Ready("qwen3").ready()
    assert fits(backbone.lm)
    change(backbone)
    assert not fits(backbone.lm)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gemma3_text", {}),
        ("mistral", {}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_other_architectures_do(model_type: str, config: dict[str, Any]) -> None:
    assert not fits(tiny_ar(model_type, **config).lm)


def test_hooks_that_transformers_leaves_for_layers_do_not_matter() -> None:
    backbone = _Ready("qwen3").ready()
    backbone(*_Ready("qwen3").prompts(backbone), layers=[1])
    assert any(layer._forward_hooks for layer in backbone.lm.model.layers), "otherwise this proves nothing"
    assert fits(backbone.lm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_products_are_the_plain_ones(dtype: torch.dtype, biased: bool) -> None:
    if not packs(torch.device("cpu"), dtype):
        pytest.skip("this processor packs no weights")
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 48, generator=generator) for rows in (40, 24)]
    weight, bias = stacked(weights, [None, torch.arange(24.0) if biased else None], dtype)
    assert weight.shape == (64, 48) and (bias is not None) == biased
    for rows in (FEWEST_ROWS, 9):
        x = torch.randn(rows, 48, generator=generator).to(dtype)
        plain, packed = (product(weight, bias, rows, packed=packed)(x) for packed in (False, True))
        torch.testing.assert_close(packed, plain, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_one_weight_alone_is_not_copied() -> None:
    weight = torch.ones(4, 3)
    assert stacked([weight], [None], torch.float32)[0].data_ptr() == weight.data_ptr()
    assert not packs(torch.device("cpu"), torch.float64)
