"""Packing: rows end to end are read as rows apart, by every attention, and what can not be packed is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.ar import CausalLM, rows_attention
from blip3o.ar import packed as packing
from blip3o.ar.base import ARBackbone
from blip3o.ar.packed import EndToEnd
from blip3o.ar.rows_attention import attend_varlen, attend_within_rows, runs_varlen
from tests.ar.backbones import causal, vision
from tests.ar.contract import NUM_CODES
from tests.tiny import perturbed, tiny_ar

LENGTHS = (3, 7, 5)
MASK = torch.arange(max(LENGTHS)) >= max(LENGTHS) - torch.tensor(LENGTHS)[:, None]
IDS = torch.randint(0, 16, MASK.shape, generator=torch.Generator().manual_seed(0))
FULL, WINDOWED = ["qwen3", "llama", "granite", "phi"], ["gemma3_text", "cohere2"]
RECURRENT = ["mamba", "mamba2", "falcon_h1", "bamba", "granitemoehybrid", "qwen3_next", "qwen3_5_text", "lfm2"]


def ready(backbone: CausalLM) -> CausalLM:
    backbone.extend_vocabulary(NUM_CODES)
    return perturbed(backbone, std=0.2).eval()


def test_rows_are_laid_end_to_end_and_back() -> None:
    rows = EndToEnd(MASK)
    assert rows.lengths == LENGTHS
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]]
    assert rows.pack(IDS).tolist() == [[*IDS[0, 4:].tolist(), *IDS[1].tolist(), *IDS[2, 2:].tolist()]]
    wide = torch.stack([IDS, -IDS], dim=2)
    assert torch.equal(rows.unpack(rows.pack(wide)), wide.masked_fill(~MASK[..., None], 0))


@pytest.mark.parametrize("model_type", [*FULL, *WINDOWED])
def test_states_logits_and_gradients_are_those_of_padded_rows(model_type: str) -> None:
    """Also with a sliding window that is shorter than the rows, of which transformers makes a mask."""
    backbone = ready(causal(model_type))
    assert backbone.vocabulary is not None
    backbone.check_packing()
    asked = {"logits_for": (0, backbone.vocabulary.size), "logits_at": MASK, "layers": [0, 1, -1]}
    results = []
    for packed in (False, True):
        output = backbone(IDS, MASK, packed=packed, **asked)
        assert output.logits is not None and output.layers is not None
        layers = output.layers.movedim(1, 2)[MASK]
        F.cross_entropy(output.logits, IDS[MASK]).backward()
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        backbone.zero_grad()
        results.append([output.hidden[MASK], layers, output.logits, *gradients])
        assert output.hidden.shape == (*MASK.shape, backbone.hidden_size)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    hidden = backbone(IDS, MASK, packed=True).hidden
    assert not hidden[~MASK].any() and hidden[MASK].any(-1).all()


def test_other_attention_takes_the_mask_that_transformers_makes() -> None:
    one, other = ready(tiny_ar()), ready(tiny_ar())
    other.attention = "eager"
    torch.testing.assert_close(
        other(IDS, MASK, packed=True).hidden, one(IDS, MASK, packed=True).hidden, rtol=1e-5, atol=1e-5
    )
    assert other.lm.config._attn_implementation == "eager"


def test_a_row_sees_nothing_of_the_others() -> None:
    backbone = ready(tiny_ar())
    changed = IDS.clone()
    changed[0] = (changed[0] + 1) % 16
    before, after = (backbone(ids, MASK, packed=True).hidden for ids in (IDS, changed))
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


def test_no_layer_works_on_padding_and_the_attention_is_as_before() -> None:
    backbone = ready(tiny_ar())
    seen: list[tuple[int, ...]] = []
    layer = backbone.lm.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    for mask in (MASK, None):
        backbone(IDS, mask, packed=True)
    assert seen == [(1, sum(LENGTHS)), (1, IDS.numel())]
    assert backbone.lm.config._attn_implementation == "sdpa"


def test_embeddings_given_are_packed_too() -> None:
    backbone = ready(tiny_ar())
    embeds = backbone.embed(IDS) * torch.linspace(0.5, 2, backbone.hidden_size)
    apart, packed = (backbone(IDS, MASK, inputs_embeds=embeds, packed=packed).hidden[MASK] for packed in (False, True))
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_models_with_a_running_state_are_refused(model_type: str) -> None:
    backbone = causal(model_type)
    told = rf"packing can not be used with model_type \({model_type}\), whose state would run on from one row into"
    with pytest.raises(ValueError, match=told):
        backbone.check_packing()
    with pytest.raises(ValueError, match=told):
        backbone(IDS, packed=True)


def test_positions_in_three_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="packing can not be used with VisionLanguageLM, whose positions count an"):
        vision("qwen3_vl").check_packing()


def test_a_backbone_that_says_nothing_of_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="packing can not be used with CausalLM, which has none; set packing to false"):
        ARBackbone.check_packing(tiny_ar())


def test_a_model_that_reads_packed_rows_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = ready(tiny_ar())
    monkeypatch.setattr(EndToEnd, "positions", property(lambda self: torch.arange(7)[None]))
    monkeypatch.setattr(EndToEnd, "lengths", property(lambda self: (7,)))
    with pytest.raises(ValueError, match=r"model_type \(qwen3\), which reads rows that lie end to end otherwise"):
        backbone.check_packing()


def test_a_model_that_does_not_hand_the_lengths_on_is_told() -> None:
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="Linear is not told where rows end, so packing can not be used"):
        attend_within_rows(torch.nn.Linear(1, 1), query, query, query, None)


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch documents of its kernel, one row after the other."""
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and window_size == (-1, 0)
    lengths = cu_seq_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    rows = zip(*(one.movedim(0, 1).split(lengths, 1) for one in (query, key, value)), strict=True)
    mixed = [F.scaled_dot_product_attention(*row, scale=scale, is_causal=True, enable_gqa=enable_gqa) for row in rows]
    return torch.cat(mixed, dim=1).movedim(0, 1)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_variable_length_kernel_is_asked_for_the_same(key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows_attention.varlen is None:
        pytest.skip("this torch has no such kernel")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 8, generator=generator)
    key, value = torch.randn(2, 1, key_heads, sum(LENGTHS), 8, generator=generator)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 4 // key_heads
    expected, _ = attend_within_rows(module, query, key, value, None, scaling=0.3, row_lengths=LENGTHS)
    monkeypatch.setattr(rows_attention.varlen, "varlen_attn", reference_varlen)
    assert not runs_varlen(query, 0.0), "it is for CUDA"
    torch.testing.assert_close(attend_varlen(query, key, value, LENGTHS, 0.3)[None], expected)


@pytest.mark.gpu
def test_the_kernel_itself_gives_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, asked, attend = ready(tiny_ar()).to("cuda"), [], attend_varlen
    monkeypatch.setattr(rows_attention, "attend_varlen", lambda *given: (asked.append(1), attend(*given))[1])
    ids, mask = IDS.cuda(), MASK.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        apart, packed = (backbone(ids, mask, packed=packed).hidden[mask].float() for packed in (False, True))
    torch.testing.assert_close(packed, apart, rtol=5e-2, atol=5e-2)
    assert asked, "torch's kernel was not used"


def test_flash_attention_is_told_where_rows_begin() -> None:
    told = EndToEnd(MASK).flash_arguments()
    assert told["cu_seq_lens_q"].tolist() == [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    assert told["cu_seq_lens_k"].dtype == torch.int32 and told["max_length_q"] == max(LENGTHS)


def test_trying_leaves_training_and_evaluation_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = ready(tiny_ar()).train()
    backbone.lm.get_decoder().layers[0].eval()
    modes = [module.training for module in backbone.modules()]
    backbone.check_packing()
    monkeypatch.setattr(packing, "run_packed", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.check_packing()
    assert [module.training for module in backbone.modules()] == modes


def test_a_backbone_that_recomputes_copies_and_refuses_to_generate_in_training_mode() -> None:
    backbone = ready(tiny_ar())
    backbone.enable_gradient_checkpointing()
    other = copy.deepcopy(backbone)
    contexts = {
        id(m._gradient_checkpointing_func.keywords["context_fn"].lm)
        for m in other.lm.modules()
        if hasattr(m, "_gradient_checkpointing_func")
    }
    assert contexts == {id(other.lm)}
    prompt = (torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    backbone.eval().generate(*prompt, 2)
    with pytest.raises(ValueError, match=r"training mode with gradient_checkpointing.*call eval\(\)"):
        backbone.train().generate(*prompt, 2)
