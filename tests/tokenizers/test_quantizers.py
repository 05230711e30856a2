"""Quantizers: their codes and ids are inverse, the nearest code is the nearest, and they can be trained through."""

from __future__ import annotations

import pytest
import torch

from blip3o.tokenizers import FSQ, Quantizer, SimVQ
from tests.tiny import perturbed, rebuilt, seeded, tiny_images, tiny_tokenizer


def build(name: str) -> Quantizer:
    with seeded(0):
        if name == "fsq":
            return FSQ([4, 3, 5])
        return perturbed(SimVQ(codebook_size=60, dim=6, normalize=name == "normalised simvq"))


@pytest.fixture(params=["fsq", "simvq", "normalised simvq"])
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return build(request.param)


def test_a_code_is_quantised_to_itself(quantizer: Quantizer) -> None:
    ids = torch.arange(quantizer.codebook_size).reshape(2, 30)
    codes = quantizer.codes(ids)
    assert codes.shape == (2, 30, quantizer.dim)
    vectors = torch.atanh(codes * 0.99) if isinstance(quantizer, FSQ) else codes
    features, again, loss = quantizer.quantize(vectors)
    assert torch.equal(again, ids)
    torch.testing.assert_close(features, codes, rtol=0, atol=1e-6)
    assert loss.abs() < 1e-10


def test_codes_are_all_different(quantizer: Quantizer) -> None:
    assert quantizer.codebook_size == 60
    codes = quantizer.codes(torch.arange(60))
    assert len(codes.unique(dim=0)) == 60


def test_every_id_is_reached_and_none_outside(quantizer: Quantizer) -> None:
    vectors = 2 * torch.randn(20_000, quantizer.dim, generator=torch.Generator().manual_seed(0))
    ids = quantizer.quantize(vectors)[1]
    assert ids.min() >= 0 and ids.max() < 60
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


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codebook_size \(1\)"):
        SimVQ(codebook_size=1)
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
