"""Attention of the language models: every kernel gives the same numbers, and the setting finds the one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip3o.ar import CausalLM, VisionLanguageLM, word_tokenizer
from blip3o.ar.attention import flash_package
from blip3o.ar.lean import fits
from tests.ar.backbones import CAUSAL, VISION, causal, vision
from tests.ar.contract import CAPTIONS, GREEDY, NUM_CODES, NUM_TOKENS
from tests.gpus import BFLOAT16, CUDA, pretend
from tests.tiny import WORDS, generators, perturbed, rebuilt

EAGER_ALONE = {"gemma2", "mamba", "mamba2"}
"""Without `sdpa` in transformers: capped scores, or no attention at all."""


def ready(backbone: CausalLM) -> CausalLM:
    backbone.extend_vocabulary(NUM_CODES)
    return perturbed(backbone, seed=1, std=0.2).eval()


def padded(backbone: CausalLM) -> tuple[Tensor, Tensor]:
    read = backbone.text_tokenizer(list(CAPTIONS), padding=True, return_tensors="pt", padding_side="left")
    return read["input_ids"], read["attention_mask"].bool()


@pytest.mark.parametrize("model_type", sorted(CAUSAL.keys() - EAGER_ALONE))
@torch.no_grad()
def test_eager_and_sdpa_give_the_same_states_and_tokens(model_type: str) -> None:
    backbone = ready(causal(model_type))
    ids, mask = padded(backbone)
    assert not mask.all()
    hidden, drawn = {}, {}
    for setting in ("sdpa", "eager"):
        backbone.set_attention(setting)  # type: ignore[arg-type]
        hidden[setting] = backbone(ids, mask).hidden[mask]
        drawn[setting] = backbone.generate(ids, mask, NUM_TOKENS, GREEDY, generators(len(ids)))
        assert backbone.lm.config._attn_implementation == setting
    torch.testing.assert_close(hidden["eager"], hidden["sdpa"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drawn["eager"].hidden, drawn["sdpa"].hidden, rtol=1e-5, atol=2e-5)
    assert torch.equal(drawn["eager"].ids, drawn["sdpa"].ids)


@pytest.mark.parametrize("model_type", sorted(VISION))
@torch.no_grad()
def test_eager_and_sdpa_read_pictures_alike(model_type: str) -> None:
    backbone = ready(vision(model_type))
    assert isinstance(backbone, VisionLanguageLM)
    images = torch.rand(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ids = torch.tensor([[*backbone.image_ids(1, 32, 32), 3, 4, 5]])
    hidden = {}
    for setting in ("sdpa", "eager"):
        backbone.set_attention(setting)  # type: ignore[arg-type]
        hidden[setting] = backbone(ids, torch.ones_like(ids, dtype=torch.bool), images=images).hidden
        assert backbone.lm.config.vision_config._attn_implementation == setting
        assert backbone.lm.config.text_config._attn_implementation == setting
    torch.testing.assert_close(hidden["eager"], hidden["sdpa"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", sorted(EAGER_ALONE))
def test_a_model_without_sdpa_takes_eager_by_itself_and_refuses_sdpa(model_type: str) -> None:
    backbone = ready(causal(model_type))
    backbone.use_attention()
    assert backbone.lm.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"attention \('sdpa'\) .* has none; set attention to 'eager'"):
        CausalLM({"model_type": model_type, **CAUSAL[model_type]}, list(WORDS), attention="sdpa")


def test_the_lean_step_is_left_out_where_eager_is_asked_for() -> None:
    backbone = ready(causal("qwen3"))
    assert fits(backbone.lm)
    backbone.set_attention("eager")
    backbone.use_attention()
    assert not fits(backbone.lm)


@pytest.mark.parametrize("attention", ["auto", "flash", "sdpa", "eager", None])
def test_the_setting_and_not_the_kernel_is_kept(attention: str | None) -> None:
    config = {"model_type": "qwen3", **CAUSAL["qwen3"]}
    backbone = CausalLM(config, list(WORDS), attention=attention)  # type: ignore[arg-type]
    assert backbone.attention == (attention or "auto")
    assert backbone.config()["init_args"]["attention"] == attention
    assert rebuilt(backbone).config() == backbone.config()
    backbone.set_attention("eager")
    assert backbone.config()["init_args"]["attention"] == "eager"


def test_a_transformers_folder_is_read_with_the_setting(tmp_path: Path) -> None:
    causal("qwen3").lm.save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    loaded = CausalLM.from_pretrained(str(tmp_path), attention="eager")
    assert loaded.lm.config._attn_implementation == "eager" == loaded.init_args["attention"]
    assert CausalLM.from_pretrained(str(tmp_path)).attention == "auto"
    assert CausalLM.from_pretrained(str(tmp_path), attention="flash").attention == "flash"


def test_flash_is_refused_on_this_machine_when_it_runs_and_not_before() -> None:
    backbone = ready(causal("qwen3"))
    backbone.set_attention("flash")
    ids, mask = padded(backbone)
    if not torch.cuda.is_available():
        told = r"attention \('flash'\) can not be used by CausalLM here: there is no CUDA device; .* 'auto'"
        with pytest.raises(ValueError, match=told):
            backbone(ids, mask)
        with pytest.raises(ValueError, match=told):
            backbone.generate(ids, mask, 2, GREEDY)


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({"flash_2": False}, "the flash-attn package is missing or older than 2.6.0; install flash-attn"),
        ({"capability": (7, 5)}, r"compute capability is 7\.5, and flash kernels need 8\.0"),
        ({"dtype": torch.float32}, "it computes in float32, .* dtype=torch.bfloat16"),
        ({"device": torch.device("cpu")}, "the weights are on cpu; move them to the GPU"),
    ],
)
def test_flash_says_what_it_lacks_and_auto_takes_sdpa(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, object], told: str
) -> None:
    backbone = ready(causal("qwen3"))
    pretend(monkeypatch, **machine)  # type: ignore[arg-type]
    backbone.use_attention()
    assert backbone.lm.config._attn_implementation == "sdpa"
    backbone.set_attention("flash")
    with pytest.raises(ValueError, match=told):
        backbone.use_attention()


def test_wide_heads_and_models_without_flash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(ValueError, match="its heads are 264 wide, and flash kernels take at most 256"):
        causal("qwen3", head_dim=264).attention_kernel(CUDA, BFLOAT16, "flash")
    with pytest.raises(ValueError, match="transformers' MambaForCausalLM has no flash attention"):
        causal("mamba").attention_kernel(CUDA, BFLOAT16, "flash")
    assert causal("qwen3", head_dim=264).attention_kernel(CUDA, BFLOAT16) == "sdpa"
    assert causal("mamba").attention_kernel(CUDA, BFLOAT16) == "eager"


@pytest.mark.parametrize(
    ("machine", "config", "name"),
    [
        ({}, {}, "flash_attention_2"),
        ({"capability": (9, 0)}, {}, "flash_attention_2"),
        ({"capability": (9, 0), "flash_3": True}, {}, "flash_attention_3"),
        ({"capability": (10, 0), "flash_3": True}, {}, "flash_attention_2"),
        ({"capability": (9, 0), "flash_3": True}, {"attention_dropout": 0.1}, "flash_attention_2"),
        ({"capability": (8, 0), "flash_2": False, "flash_3": True}, {}, None),
    ],
)
def test_auto_takes_the_fastest_flash_package(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, object], config: dict[str, float], name: str | None
) -> None:
    backbone = causal("qwen3", **config)
    pretend(monkeypatch, **machine)  # type: ignore[arg-type]
    assert flash_package(backbone.lm, CUDA) == name
    asked: list[str] = []

    def switch(implementation: str) -> None:
        asked.append(implementation)
        backbone.lm.config._attn_implementation_internal = implementation

    monkeypatch.setattr(backbone.lm, "set_attn_implementation", switch)
    backbone.use_attention()
    backbone.use_attention()
    assert asked == ([] if name is None else [name])
    assert backbone.config()["init_args"]["attention"] == "auto"


def test_a_model_that_can_not_be_switched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = causal("qwen3")
    backbone.set_attention("eager")
    monkeypatch.setattr(type(backbone.lm), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ValueError, match="can not switch Qwen3ForCausalLM from sdpa to it"):
        backbone.use_attention()
