"""Joint training with packed rows and with gradient checkpointing: losses and gradients are those without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.ar import ARBackbone
from blip3o.bridge import MLPBridge
from blip3o.diffusion import Denoiser
from blip3o.model import Blip3oNext
from blip3o.prompts import Supervise
from blip3o.recomputing import recomputed
from blip3o.structures import ARStates, ModelLosses
from blip3o.training.attention import fast_attention
from blip3o.training.joint import JointModule
from blip3o.training.mixed import mixed_losses
from tests.ar.backbones import causal
from tests.tiny import PLAIN, generators, perturbed, seeded, tiny_dcae, tiny_head, tiny_images, tiny_model, tiny_sana
from tests.tiny_bridges import CAPTIONS, losses, shared
from tests.training.test_mixed import CAPTIONS as MIXED_CAPTIONS
from tests.training.test_mixed import batch_of, edit_model


def total(losses: ModelLosses) -> Tensor:
    """The joint loss."""
    return losses.cross_entropy / losses.num_tokens.clamp(min=1) + losses.flow.mean()


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By parameter; the model's own are cleared."""
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def check_same(model: Blip3oNext, run: Callable[[bool], ModelLosses]) -> None:
    """Losses and gradients of `run(False)` and `run(True)` agree."""
    plain, changed = run(False), run(True)
    for name in ("cross_entropy", "num_tokens", "flow"):
        torch.testing.assert_close(getattr(changed, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    expected = gradients_of(model, total(plain))
    assert any(name.startswith("ar.") and bool(grad.any()) for name, grad in expected.items())
    torch.testing.assert_close(gradients_of(model, total(changed)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("supervise", ["all", "answer", "image"])
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(supervise: Supervise) -> None:
    model = tiny_model()
    check_same(model, lambda packing: losses(model, supervise=supervise, packing=packing))


@pytest.mark.parametrize("name", ["layer fusion", "token embeddings", "learned queries", "prompt states"])
def test_every_kind_of_bridge_reads_the_same_states(name: str) -> None:
    """Of the same shapes: the rows of (B, L, H), which packing knows nothing of."""
    model = shared(name)
    read: list[ARStates] = []
    handle = model.bridge.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    check_same(model, lambda packing: losses(model, packing=packing))
    handle.remove()
    padded, packed = read
    assert padded.hidden.shape == packed.hidden.shape and padded.hidden.shape[0] == len(CAPTIONS)
    torch.testing.assert_close(packed.hidden, padded.hidden, rtol=1e-5, atol=1e-5)


def test_the_bridge_reads_one_state_for_the_scale_token_and_each_image_token() -> None:
    model = tiny_model()
    read: list[ARStates] = []
    model.bridge.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    losses(model, packing=True)
    assert read[0].hidden.shape == (len(CAPTIONS), 1 + model.tokenizer.num_tokens(), model.ar.hidden_size)


def test_batches_that_mix_edits_pack_too() -> None:
    model, batch = edit_model(), batch_of([0, 2, 1, 2])

    def run(packing: bool) -> ModelLosses:
        rows = torch.arange(4)
        given: dict[str, Any] = {"supervise": "all", "rendered_rows": rows, "generator": generators(4)}
        return mixed_losses(model, batch, MIXED_CAPTIONS, packing=packing, **given)

    check_same(model, run)


def test_accumulated_packed_batches_have_the_gradient_of_accumulated_padded_ones_and_of_the_whole() -> None:
    """Rows with as many supervised tokens each: the mean over batches is then that over all tokens."""
    model, images = tiny_model(), tiny_images(4)
    captions = [*CAPTIONS, "a square above a circle"]

    def part(rows: slice, packing: bool) -> Tensor:
        drawn = generators(4)[rows]
        return total(model.losses(images[rows], captions[rows], supervise="answer", packing=packing, generator=drawn))

    def accumulated(packing: bool) -> dict[str, Tensor]:
        halves = [part(slice(start, start + 2), packing) / 2 for start in (0, 2)]
        return gradients_of(model, torch.stack(halves).sum())

    packed = accumulated(True)
    torch.testing.assert_close(packed, accumulated(False), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed, gradients_of(model, part(slice(4), True)), rtol=1e-5, atol=1e-5)


def batch(images: int = 3) -> dict[str, Any]:
    return {"index": torch.arange(images), "caption": CAPTIONS[:images], "image": tiny_images(images)}


def step(module: JointModule, monkeypatch: pytest.MonkeyPatch, *, lowered: bool = False) -> tuple[float, Any]:
    """Loss and gradients of a training step, as a trainer takes it, without one."""
    monkeypatch.setattr(module, "log_dict", lambda *given, **named: None)
    monkeypatch.setattr(module, "_mean_over_processes", lambda count: count)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        loss = module.training_step(batch(), 0)
    return loss.item(), gradients_of(module, loss)


@pytest.mark.parametrize("lowered", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_checkpointed_steps_have_the_same_loss_and_gradients(
    packing: bool, lowered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast the forward pass runs in another attention kernel than is chosen outside."""
    plain, checkpointed = (
        JointModule(tiny_model(), condition_dropout=0.0, packing=packing, gradient_checkpointing=on)
        for on in (False, True)
    )
    expected, actual = (step(module, monkeypatch, lowered=lowered) for module in (plain, checkpointed))
    assert actual[0] == expected[0]
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-5)


def test_packing_is_what_the_joint_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for packing in (False, True):
        module = JointModule(tiny_model(), packing=packing)
        layer = module.model.ar.lm.get_decoder().layers[0]
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        step(module, monkeypatch)
    assert seen == [len(CAPTIONS), 1]


def calls_in_a_step(model: Blip3oNext, layer: nn.Module, supervise: Supervise = "image") -> int:
    """How often a layer runs in a forward and a backward pass."""
    calls: list[int] = []
    inner = next(one for one in layer.modules() if isinstance(one, nn.Linear))
    handle = inner.register_forward_hook(lambda *given: calls.append(1))
    total(model.losses(tiny_images(3), CAPTIONS, supervise=supervise, generator=generators(3))).backward()
    handle.remove()
    model.zero_grad()
    return len(calls)


def test_layers_and_blocks_run_again_in_the_backward_pass_and_not_elsewhere() -> None:
    with seeded(0):
        sana = Blip3oNext(
            shared("token states").tokenizer, causal("llama"), MLPBridge, tiny_head(tiny_sana(), tiny_dcae()), PLAIN
        )
    for model in (tiny_model(), perturbed(sana)):
        denoiser: Any = model.diffusion.denoiser
        blocks = getattr(denoiser, "blocks", None) or denoiser.transformer.transformer_blocks
        layers = [model.ar.lm.get_decoder().layers[0], blocks[0]]
        expected = gradients_of(model, total(losses(model.train())))
        assert [calls_in_a_step(model, layer) for layer in layers] == [1, 1]
        JointModule(model, gradient_checkpointing=True)
        assert [calls_in_a_step(model, layer) for layer in layers] == [2, 2]
        actual = gradients_of(model, total(losses(model)))
        frozen = {name for name in expected if name.startswith(("tokenizer.", "diffusion.codec."))}
        assert actual.keys() == expected.keys() - frozen
        torch.testing.assert_close(actual, {name: expected[name] for name in actual}, rtol=1e-5, atol=1e-5)
        assert model.ar.lm.get_input_embeddings()._forward_hooks == {}, "decoding without bookkeeping needs this"


def test_what_can_not_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Blip3oNext(shared("token states").tokenizer, causal("mamba2"), MLPBridge, tiny_head(), PLAIN)
    with pytest.raises(ValueError, match=r"packing can not be used with model_type \(mamba2\)"):
        JointModule(model, packing=True)
    model = tiny_model()
    monkeypatch.setattr(model.ar.lm, "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"gradient_checkpointing can not be used with model_type \(qwen3\)"):
        JointModule(model, gradient_checkpointing=True)
    for contract, one in ((ARBackbone, model.ar), (Denoiser, model.diffusion.denoiser)):
        with pytest.raises(ValueError, match=f"gradient_checkpointing can not be used with {type(one).__name__}"):
            contract.enable_gradient_checkpointing(one)


def test_a_block_is_computed_again_with_the_kernel_of_its_first_pass() -> None:
    chosen: list[bool] = []

    def block(x: Tensor) -> Tensor:
        chosen.append(torch.backends.cuda.flash_sdp_enabled())
        return nn.functional.scaled_dot_product_attention(x, x, x).square()

    x = torch.randn(1, 1, 3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), fast_attention(torch.device("cpu")):
        loss = recomputed(block, x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert chosen == [False, False, False] and torch.backends.cuda.flash_sdp_enabled()
