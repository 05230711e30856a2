"""Counted costs beside the same numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blip3o.ar import CausalLM
from blip3o.bridge import MLPBridge
from blip3o.costs import TrainingMemory, image_cost, training_memory
from blip3o.diffusion import DiT, FlowHead, PixelCodec
from blip3o.model import Blip3oNext
from blip3o.tokenizers import ConvTokenizer, SimVQ
from blip3o.training.base import Optimization
from blip3o.training.experiment import build_on_meta, bytes_per_number
from blip3o.training.joint import JointModule
from blip3o.training.optimization import state_size
from tests.published import released_pipeline
from tests.tiny import PLAIN, tiny_model

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM = 2, 32, 48, 2, 1, 16
CODES, TOKENS, PROMPT = 64, 16, 5
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def model() -> Blip3oNext:
    """Qwen3, 16 image tokens of 64 codes, a DiT of one block on 8x8x48 latents of pixels."""
    with torch.device("meta"):
        return Blip3oNext(
            tokenizer=ConvTokenizer(
                SimVQ(codebook_size=CODES, dim=8), image_size=32, width=16, encoder_depth=1, decoder_depth=1
            ),
            ar=CausalLM(
                {
                    "model_type": "qwen3",
                    "hidden_size": HIDDEN,
                    "intermediate_size": MLP,
                    "num_hidden_layers": LAYERS,
                    "num_attention_heads": HEADS,
                    "num_key_value_heads": KV_HEADS,
                    "head_dim": HEAD_DIM,
                    "max_position_embeddings": 96,
                    "tie_word_embeddings": False,
                },
                ["a", "red", "circle"],
            ),
            bridge=MLPBridge,
            diffusion=FlowHead(
                DiT(latent_channels=48, latent_size=8, cond_dim=24, width=32, depth=1, num_heads=2),
                PixelCodec(patch_size=4),
                image_size=32,
            ),
            template=PLAIN,
        )


def test_ar_flops_are_those_of_its_matrices_and_of_causal_attention(model: Blip3oNext) -> None:
    attention_matrices = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    matrices = LAYERS * (attention_matrices + 3 * HIDDEN * MLP)
    positions = PROMPT + TOKENS
    pairs = positions * (positions + 1) // 2  # each position with itself and all before it
    attention = LAYERS * pairs * HEADS * HEAD_DIM * 2  # q k, and weights times v
    expected = 2 * (matrices * positions + attention + TOKENS * HIDDEN * CODES)
    cost = image_cost(model, prompt_length=PROMPT, num_inference_steps=3)
    guided = image_cost(model, prompt_length=PROMPT, num_inference_steps=3, token_guided=True)
    assert cost is not None
    assert guided is not None
    assert cost.ar == expected
    assert guided.ar == 2 * expected


def test_denoising_flops_grow_with_steps_and_guidance(model: Blip3oNext) -> None:
    def denoising(steps: int, guided: bool) -> int:
        cost = image_cost(model, prompt_length=PROMPT, num_inference_steps=steps, guided=guided)
        assert cost is not None
        return cost.denoising

    one = denoising(1, guided=False)
    # One block at least: self- and cross-attention's and the perceptron's matrices at 64 positions.
    assert one > 2 * 64 * (4 * 32 * 32 + 2 * 32 * 64)
    assert denoising(3, guided=True) == 6 * one


def test_heads_that_can_not_be_counted_are_told_apart(model: Blip3oNext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model._modules, "diffusion", torch.nn.Identity())
    assert image_cost(model, prompt_length=PROMPT, num_inference_steps=1) is None


def test_parameters_and_memory_by_hand(model: Blip3oNext) -> None:
    layer = (
        HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)  # q, k, v, o
        + 2 * HEAD_DIM  # norms of queries and keys
        + 3 * HIDDEN * MLP
        + 2 * HIDDEN  # norms
    )
    vocabulary = 4 + 3 + 5 + CODES  # special tokens, words, markers and scales, codes
    assert sum(p.numel() for p in model.ar.parameters()) == LAYERS * layer + HIDDEN + 2 * vocabulary * HIDDEN
    bridge = (HIDDEN * 24 + 24) + (24 * 24 + 24) + 24
    assert sum(p.numel() for p in model.bridge.parameters()) == bridge
    module = JointModule(model, trainable=["bridge.*"])
    total = sum(p.numel() for p in model.parameters())
    memory = training_memory(module.parameters(), state_size(module.build_optimizer()), bytes_per_number=4)
    assert memory == TrainingMemory(weights=4 * total, gradients=4 * bridge, optimizer=8 * bridge)
    assert memory.ddp == 4 * total + 12 * bridge
    assert memory.fsdp(8) == -(-memory.ddp // 8)
    with pytest.raises(ValueError, match=r"devices \(0\) must be at least 1"):
        memory.fsdp(0)


def test_the_optimizers_really_keep_that_many_numbers() -> None:
    model = tiny_model()
    for optimization in (Optimization(name="adamw"), Optimization(name="muon")):
        module = JointModule(model, optimization)
        optimizer = module.build_optimizer()
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        parts = getattr(optimizer, "parts", [optimizer])
        kept = [v for part in parts for state in part.state.values() for v in state.values()]
        assert sum(v.numel() for v in kept if v.ndim) == state_size(optimizer)


def test_precisions() -> None:
    assert [bytes_per_number({"precision": name}) for name in ("32-true", "bf16-mixed", "bf16-true", 16, None)] == [
        *(4, 4, 2, 2, 4)
    ]
    with pytest.raises(ValueError, match=r"trainer\.precision \(nf4\) is unknown"):
        bytes_per_number({"precision": "nf4"})


def test_experiments_that_do_not_build_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config \(nonesuch\.yaml\) is no file"):
        build_on_meta("nonesuch.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("model: {class_path: blip3o.training.joint.JointModule, init_args: {mdoel: 1}}")
    with pytest.raises(ValueError, match=r"(?s)bad\.yaml\) does not build.*mdoel"):
        build_on_meta(path)


def test_an_edit_reads_its_reference_and_denoises_on_a_wider_grid() -> None:
    def costs(reference: str | None, **editing: Any) -> tuple[Any, Any]:
        with torch.device("meta"):
            model = released_pipeline(reference=reference, **editing).model
        return tuple(
            image_cost(model, prompt_length=PROMPT, num_inference_steps=1, guided=False, num_references=count)
            for count in (0, 1)
        )

    text, edit = costs("width")
    assert (text.reading, text.decoding) == (0, edit.decoding)
    assert edit.reading > 0
    # The prompt grows by the 16 tokens of the reference, whose image follows as before.
    assert edit.ar - text.ar > 2 * 16 * LAYERS * 3 * HIDDEN * MLP
    assert 1.5 * text.denoising < edit.denoising < 2 * text.denoising  # the condition and the time are read once
    told_by_tokens = costs(None)
    assert told_by_tokens[0].denoising == told_by_tokens[1].denoising
    in_condition = costs(None, reference_latents=MLPBridge)
    assert in_condition[0].denoising < in_condition[1].denoising < edit.denoising


def test_what_a_run_saves_is_described_too_and_plans_are_told_apart(tmp_path: Path) -> None:
    mini = yaml.safe_load((EXPERIMENTS / "shapes/mini.yaml").read_text())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(mini | {"optimizer": None, "lr_scheduler": None, "ckpt_path": None}))
    assert isinstance(build_on_meta(path)[0], JointModule)
    with pytest.raises(ValueError, match="names no model; it is a plan of `blip3o ablate`"):
        build_on_meta(EXPERIMENTS / "ablations/quick.yaml")


def test_a_bundled_model_named_by_an_experiment_takes_no_memory() -> None:
    module, _ = build_on_meta(EXPERIMENTS / "shapes/grpo.yaml")
    assert all(parameter.is_meta for parameter in module.parameters())
