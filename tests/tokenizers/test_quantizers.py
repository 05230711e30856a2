"""Quantizers: their codes and ids are inverse, the nearest code is the nearest, and they can be trained through."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser

from blip3o.tokenizers import EMAVQ, FSQ, LFQ, ConvTokenizer, DiffusersVQ, Quantizer, ResidualVQ, SimVQ
from tests.tiny import perturbed, rebuilt, seeded, tiny_images, tiny_tokenizer
from tests.tokenizers.test_ema_vq import merged


def build(name: str) -> Quantizer:
    with seeded(0):
        if name == "fsq":
            return FSQ([4, 3, 5])
        if name == "ema vq":
            return EMAVQ(codebook_size=60, dim=6).eval()
        if name in ("lfq", "bsq"):
            return LFQ(num_bits=6, spherical=name == "bsq").eval()
        return perturbed(SimVQ(codebook_size=60, dim=6, normalize=name == "normalised simvq"))


@pytest.fixture(params=["fsq", "simvq", "normalised simvq", "lfq", "bsq", "ema vq"])
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return build(request.param)


def test_a_code_is_quantised_to_itself(quantizer: Quantizer) -> None:
    ids = torch.arange(quantizer.codebook_size).reshape(2, -1)
    codes = quantizer.codes(ids)
    assert codes.shape == (*ids.shape, quantizer.dim)
    vectors = torch.atanh(codes * 0.99) if isinstance(quantizer, FSQ) else codes
    features, again, loss = quantizer.quantize(vectors)
    assert torch.equal(again, ids)
    torch.testing.assert_close(features, codes, rtol=0, atol=1e-6)
    assert loss.abs() < 1e-10


def test_codes_are_all_different(quantizer: Quantizer) -> None:
    size = quantizer.codebook_size
    assert size == (64 if isinstance(quantizer, LFQ) else 60)
    assert len(quantizer.codes(torch.arange(size)).unique(dim=0)) == size


def test_every_id_is_reached_and_none_outside(quantizer: Quantizer) -> None:
    # A codebook that follows the data starts wherever it was drawn: look around there.
    spread = quantizer.codes(torch.arange(60)).std() if isinstance(quantizer, EMAVQ) else 2.0
    vectors = spread * torch.randn(20_000, quantizer.dim, generator=torch.Generator().manual_seed(0))
    ids = quantizer.quantize(vectors)[1]
    assert ids.min() >= 0 and ids.max() < quantizer.codebook_size
    assert len(ids.unique()) > 50


@pytest.mark.parametrize("normalize", [False, True])
def test_simvq_takes_the_nearest_code_by_brute_force(normalize: bool) -> None:
    quantizer = build("normalised simvq" if normalize else "simvq")
    assert isinstance(quantizer, SimVQ)
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    codes = quantizer.codebook.weight @ quantizer.codebook_proj.weight.T + quantizer.codebook_proj.bias
    if normalize:
        distance = -torch.nn.functional.cosine_similarity(vectors[:, None], codes[None], dim=-1)
    else:
        distance = (vectors[:, None] - codes[None]).square().sum(-1)
    ids = quantizer.quantize(vectors)[1]
    chosen = distance.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=0, atol=1e-5)
    assert len(ids.unique()) > 20


def test_simvq_loss_pulls_codes_fully_and_vectors_by_the_commitment_weight() -> None:
    with seeded(0):
        quantizer = SimVQ(codebook_size=8, dim=3, commitment_weight=0.1)
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    _, ids, loss = quantizer.quantize(vectors)
    apart = vectors - quantizer.codes(ids)
    torch.testing.assert_close(loss, 1.1 * apart.square().mean())
    loss.backward()
    torch.testing.assert_close(vectors.grad, 0.1 * 2 * apart.detach() / apart.numel())
    assert quantizer.codebook.weight.grad.abs().sum() > 0


def test_the_gradient_passes_straight_through() -> None:
    vectors = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    build("simvq").quantize(vectors)[0].sum().backward()
    assert torch.equal(vectors.grad, torch.ones(7, 6))
    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    build("fsq").quantize(vectors)[0].sum().backward()
    torch.testing.assert_close(vectors.grad, 1 - torch.tanh(vectors.detach()).square())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["lfq", "ema vq", "residual vq"])
def test_what_codes_merge_to_passes_the_gradient_unchanged(name: str, training: bool) -> None:
    quantizer = ResidualVQ(num_levels=3, level_size=8, dim=6) if name == "residual vq" else build(name).train(training)
    quantizer.train(training)
    vectors = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    (merged(quantizer, quantizer.quantize(vectors)[0]) * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)


def test_fsq_rounds_every_dimension_to_its_own_levels() -> None:
    codes = FSQ([4, 3, 5]).codes(torch.arange(60))
    for dimension, levels in enumerate([4, 3, 5]):
        torch.testing.assert_close(codes[:, dimension].unique(), torch.linspace(-1, 1, levels))


def test_its_config_builds_it_again(quantizer: Quantizer) -> None:
    again = rebuilt(quantizer)
    assert again.config() == quantizer.config()
    assert again.state_dict().keys() == quantizer.state_dict().keys()
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.codes(torch.arange(60)), quantizer.codes(torch.arange(60)))


def test_the_short_paths_that_saved_configs_name_are_the_same_classes() -> None:
    for quantizer in (build("fsq"), build("simvq")):
        long = quantizer.config()
        short = {**long, "class_path": f"blip3o.tokenizers.quantizers.{type(quantizer).__name__}"}
        assert long["class_path"] != short["class_path"]
        tokenizer = tiny_tokenizer(quantizer).config()
        tokenizer["init_args"]["quantizer"] = short
        built = ArgumentParser(exit_on_error=False)
        built.add_subclass_arguments(ConvTokenizer, "part")
        again = built.instantiate_classes(built.parse_object({"part": tokenizer})).part
        assert type(again.quantizer) is type(quantizer)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codebook_size \(1\)"):
        SimVQ(codebook_size=1)
    for quantizer in (EMAVQ, ResidualVQ):
        name = "codebook_size" if quantizer is EMAVQ else "level_size"
        for argument, wrong in ((name, 1), ("decay", 1.0), ("revive_below", -1.0)):
            with pytest.raises(ValueError, match=rf"{argument} \({wrong}\)"):
                quantizer(**{argument: wrong})
    for any_vq in (SimVQ, EMAVQ, ResidualVQ):
        with pytest.raises(ValueError, match=r"dim \(0\) must be at least 1"):
            any_vq(dim=0)
    for trained in (SimVQ, EMAVQ, ResidualVQ, LFQ, partial(DiffusersVQ, {"sample_size": 32})):
        with pytest.raises(ValueError, match=r"commitment_weight \(-0\.1\) must be at least 0"):
            trained(commitment_weight=-0.1)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"num_levels \(0\)"):
        ResidualVQ(num_levels=0)
    for wrong_bits in (0, 25):
        with pytest.raises(ValueError, match=rf"num_bits \({wrong_bits}\)"):
            LFQ(num_bits=wrong_bits)
    with pytest.raises(ValueError, match=r"temperature \(0\.0\)"):
        LFQ(temperature=0.0)
    for wrong in ([], [4, 1]):
        with pytest.raises(ValueError, match="levels"):
            FSQ(wrong)


def test_a_tokenizer_learns_to_reconstruct_one_batch(quantizer: Quantizer) -> None:
    tokenizer = tiny_tokenizer(quantizer, width=32)
    images = tiny_images(4)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=5e-3)
    errors = []
    for _ in range(60):
        tokens = tokenizer.encode(images)
        error = (tokenizer.decode_features(tokens.features) - images).square().mean()
        optimizer.zero_grad()
        (error + tokens.loss).backward()
        optimizer.step()
        errors.append(error.item())
    # The best constant image of each picture is no reconstruction: beat it, too.
    constant = (images - images.mean(dim=(2, 3), keepdim=True)).square().mean()
    assert errors[-1] < errors[0] / 2
    assert errors[-1] < constant
