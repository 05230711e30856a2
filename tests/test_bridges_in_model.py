"""Every bridge in a whole model: it trains, generates, is guided, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.data.shapes import ShapesDataModule
from blip3o.diffusion import FlowHead, PixelCodec, Sana
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults
from blip3o.training.base import Optimization
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from tests.tiny import PLAIN, generators, perturbed, seeded, tiny_ar, tiny_images, tiny_model, tiny_sana, tiny_tokenizer
from tests.tiny_bridges import BRIDGES, CAPTIONS, GREEDY, every_bridge, generated, losses, read_of, shared


@every_bridge
def test_training_on_one_batch_lowers_the_loss(name: str) -> None:
    model = tiny_model(BRIDGES[name], cond_grid=None)
    model.tokenizer.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(12):
        step = losses(model, supervise="image")
        optimizer.zero_grad()
        (step.cross_entropy / step.num_tokens.clamp(min=1) + step.flow.mean()).backward()
        optimizer.step()
        history.append((step.flow.mean().item(), step.cross_entropy.item(), int(step.num_tokens)))
    assert history[-1][0] < 0.8 * history[0][0]
    if model.bridge.needs_tokens:
        assert history[-1][1] < 0.9 * history[0][1] and history[0][2] == 3 * 16
    else:
        assert {(cross_entropy, count) for _, cross_entropy, count in history} == {(0.0, 0)}


@every_bridge
def test_it_generates_tokens_where_it_needs_them_and_the_states_it_reads(name: str) -> None:
    model = shared(name)
    pipe = Blip3oPipeline(model, GenerationDefaults(num_inference_steps=2, top_k=0))
    out = pipe(CAPTIONS, generator=generators(3))
    assert len(out.images) == 3 and out.images[0].size == (32, 32)
    length = {"image_tokens": 17, "token_embeds": 17, "queries": model.bridge.num_queries, "prompt": 2 + 7}
    assert out.hidden_states.shape == (3, length[model.bridge.reads], model.ar.hidden_size)
    assert out.token_ids.shape == (3, 16 if model.bridge.needs_tokens else 0) and out.token_ids.dtype == torch.int64
    assert (model.bridge.layer_mix is None) == (model.write(CAPTIONS).layers is None)
    again = pipe(CAPTIONS, generator=generators(3), output_type="latent").latents
    assert torch.equal(out.latents, again)


@every_bridge
def test_a_row_is_what_it_is_alone_in_training_and_in_generation(name: str) -> None:
    model = shared(name)
    whole, rendered = losses(model), generated(model)
    for row, caption in enumerate(CAPTIONS):
        image = tiny_images(3)[row : row + 1]
        alone = model.losses(image, [caption], generator=generators(1, row))
        torch.testing.assert_close(whole.flow[row], alone.flow[0], rtol=1e-4, atol=1e-5)
        one = generated(model, [caption], row)
        assert torch.equal(rendered.tokens.ids[row], one.tokens.ids[0])
        torch.testing.assert_close(rendered.latents[row], one.latents[0], rtol=0, atol=1e-4)
    rows = torch.tensor([0, 2])
    some = model.losses(tiny_images(3), CAPTIONS, rendered_rows=rows, generator=[generators(3)[i] for i in rows])
    torch.testing.assert_close(some.flow, whole.flow[rows], rtol=1e-4, atol=1e-5)
    none = model.losses(tiny_images(3), CAPTIONS, rendered_rows=rows[:0], generator=[])
    assert none.flow.shape == (0,)


@every_bridge
def test_the_condition_depends_on_the_prompt(name: str) -> None:
    """With one noise for all, pictures differ by their captions alone."""
    model = shared(name)
    noise = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
    latents = generated(model, latents=noise, sampling=GREEDY).latents
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (latents[one] - latents[other]).abs().max() > 1e-3


@every_bridge
def test_guidance_is_against_null_states(name: str) -> None:
    model = shared(name)
    noise = torch.randn(3, 48, 8, 8, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"latents": noise, "sampling": GREEDY}
    guided, plain, null = (generated(model, guidance_scale=scale, **given).latents for scale in (3.0, 1.0, 0.0))
    assert (guided - plain).abs().max() > 1e-3
    cond, negative = model.condition(model.write(CAPTIONS, sampling=GREEDY))
    torch.testing.assert_close(
        null, model.diffusion.sample(negative, num_inference_steps=2, latents=noise), rtol=0, atol=1e-4
    )
    assert cond.embeds.shape == negative.embeds.shape
    # A row that is dropped in training is conditioned on the same.
    dropped = torch.tensor([True, False, False])
    expected = model.diffusion.loss(tiny_images(3), model.bridge(read_of(model).null()), generator=generators(3))
    actual = losses(model, dropped=dropped)
    torch.testing.assert_close(actual.flow[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.flow[1:], losses(model).flow[1:], rtol=1e-4, atol=1e-5)


@every_bridge
def test_a_saved_model_gives_the_same_pictures(name: str, tmp_path: Path) -> None:
    model = shared(name)
    expected = Blip3oPipeline(model)(CAPTIONS, num_inference_steps=2, generator=generators(3), output_type="np")
    again = Blip3oPipeline.from_pretrained(Blip3oPipeline(model).save_pretrained(tmp_path / "model"))
    assert again.model.bridge.config() == model.bridge.config()
    actual = again(CAPTIONS, num_inference_steps=2, generator=generators(3), output_type="np")
    assert (expected.images == actual.images).all()


@every_bridge
def test_gradients_reach_the_parts_that_take_part(name: str) -> None:
    """Parameters without a gradient are those that data-parallel training has to be told of."""
    model = tiny_model(BRIDGES[name], cond_grid=None)
    step = losses(model)
    step.flow.sum().backward(retain_graph=True)
    reached = any(p.grad is not None and p.grad.any() for p in model.ar.parameters())
    assert reached is (model.bridge.reads != "token_embeds"), "the flow trains the AR model where states are read"
    if model.bridge.needs_tokens:
        step.cross_entropy.backward()
    frozen = ("tokenizer.", "diffusion.codec.")
    idle = {n for n, p in model.named_parameters() if p.grad is None and not n.startswith(frozen)}
    assert idle == (set() if model.bridge.needs_tokens else {"ar.lm.lm_head.weight"})


@every_bridge
def test_joint_training_logs_finite_numbers(name: str) -> None:
    module = JointModule(tiny_model(BRIDGES[name], cond_grid=None), Optimization(name="muon", warmup_steps=1))
    data = ShapesDataModule(world="shapes-mini", batch_size=4, num_val=1, num_prompts=1)
    logged = fit_steps(module, data, num_steps=2)
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in logged)
    if not module.model.bridge.needs_tokens:
        assert {step["cross_entropy"] for step in logged} == {0.0}
    module.log_dict = lambda values, **_: seen.update(values)  # type: ignore[method-assign, assignment]
    seen: dict[str, Tensor] = {}
    images = tiny_images(2)
    module.generation_defaults = GenerationDefaults(num_inference_steps=1, top_k=0)
    batch = {"image": images, "caption": CAPTIONS[:2], "index": torch.arange(2)}
    assert module.evaluation_step(batch, "val").shape == images.shape
    assert all(value.isfinite() for value in seen.values()) and len(seen) == 2


@pytest.mark.parametrize("name", ["prompt states", "learned queries", "perceiver"])
def test_sana_takes_them_too(name: str) -> None:
    with seeded(0):
        denoiser = Sana(tiny_sana(in_channels=12, out_channels=12, sample_size=16).init_args["config"])
        head = FlowHead(denoiser, PixelCodec(patch_size=2), image_size=32)
        model = perturbed(Blip3oNext(tiny_tokenizer(), tiny_ar(), BRIDGES[name], head, PLAIN), std=0.2).eval()
    rendered = generated(model, sampling=GREEDY)
    for row, caption in enumerate(CAPTIONS):
        alone = generated(model, [caption], row, sampling=GREEDY)
        torch.testing.assert_close(rendered.latents[row], alone.latents[0], rtol=0, atol=1e-4)
    assert losses(model).flow.isfinite().all()


@pytest.mark.parametrize("name", ["learned queries", "token embeddings", "prompt states", "layer fusion"])
def test_in_bfloat16(name: str) -> None:
    model = tiny_model(BRIDGES[name], cond_grid=None).to(torch.bfloat16)
    rendered = generated(model)
    assert rendered.latents.dtype == torch.bfloat16 and rendered.latents.isfinite().all()
    step = model.losses(tiny_images(2).bfloat16(), CAPTIONS[:2], generator=generators(2))
    (step.cross_entropy + step.flow.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
