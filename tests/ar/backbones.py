"""Tiny configurations of the language models that are proved to work, by their model_type."""

from __future__ import annotations

from typing import Any

from blip3o.ar import CausalLM, VisionLanguageLM
from tests.tiny import HIDDEN_SIZE, WORDS, seeded

_SIZES = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2}
_ATTENTION = {
    **_SIZES,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    **_MIXED,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

# Each with what sets it apart, at values that show: windows shorter than the prompts, caps and scales that bite.
CAUSAL: dict[str, dict[str, Any]] = {
    "qwen3": {**_ATTENTION, "head_dim": 16},
    "llama": {**_ATTENTION},
    "gemma2": {**_ATTENTION, **_SLIDING, "head_dim": 16, "final_logit_softcapping": 2.0},
    "gemma3_text": {**_ATTENTION, **_SLIDING, "head_dim": 16, "final_logit_softcapping": 2.0},
    "mamba": {**_SIZES, "state_size": 8},
    "mamba2": {**_SIZES, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": {**_ATTENTION, **_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "bamba": {**_ATTENTION, **_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_ATTENTION,
        **_MAMBA,
        **_MIXED,
        "num_local_experts": 0,
        "shared_intermediate_size": 16,
        "logits_scaling": 4.0,
    },
    "qwen3_next": {**_ATTENTION, **_DELTA, **_EXPERTS, "head_dim": 16},
    "qwen3_5_text": {**_ATTENTION, **_DELTA, "head_dim": 16},
    "lfm2": {**_ATTENTION, "layer_types": ["conv", "full_attention"]},
    "granite": {**_ATTENTION, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere2": {**_ATTENTION, "logit_scale": 0.25, "sliding_window": 4},
    "phi": {**_ATTENTION},  # its head has a bias
}

_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_TEXT = {**_ATTENTION, "rope_parameters": _ROTARY}
_VISION = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
_MERGED = {**_VISION, "intermediate_size": 32, "out_hidden_size": HIDDEN_SIZE, "num_position_embeddings": 16}

# 8 pixels a position: patches of 4, merged two by two.
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"text_config": _TEXT, "vision_config": {**_VISION, "embed_dim": 16, "hidden_size": HIDDEN_SIZE}},
    "qwen2_5_vl": {
        "text_config": _TEXT,
        "vision_config": {
            **_VISION,
            "intermediate_size": 32,
            "out_hidden_size": HIDDEN_SIZE,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "head_dim": 16},
        "vision_config": {**_MERGED, "deepstack_visual_indexes": [0]},
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            **_DELTA,
            "head_dim": 16,
            "rope_parameters": {**_ROTARY, "partial_rotary_factor": 1.0},
        },
        "vision_config": _MERGED,
    },
}
VISION_WORDS = (*WORDS, "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


def causal(model_type: str, **overrides: Any) -> CausalLM:
    """A two-layer causal LM, its vocabulary not extended yet."""
    with seeded(0):
        return CausalLM({"model_type": model_type, **CAUSAL[model_type], **overrides}, list(WORDS))


def vision(model_type: str) -> VisionLanguageLM:
    """A two-layer vision-language model with a two-layer tower, its vocabulary not extended yet."""
    with seeded(0):
        return VisionLanguageLM({"model_type": model_type, **VISION[model_type]}, list(VISION_WORDS))
