"""LFQ and BSQ: the entropies against brute force over all codes, and against vector_quantize_pytorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import LFQ as LibraryLFQ

from blip3o.tokenizers import LFQ


def vectors(count: int, dim: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(4))


def brute_force(quantizer: LFQ, given: Tensor) -> tuple[Tensor, Tensor]:
    """Both entropies in float64, from the softmax over the distances to all codes."""
    v = given.double()
    codes = quantizer.codes(torch.arange(quantizer.codebook_size)).double()
    q = (-(v[:, None] - codes).square().sum(-1) / quantizer.temperature).softmax(-1)
    return torch.special.entr(q).sum(-1).mean(), torch.special.entr(q.mean(0)).sum()


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("bits", "temperature"), [(1, 1.0), (2, 0.3), (7, 2.0), (6, 0.5)])
def test_the_loss_and_its_gradient_match_brute_force(bits: int, temperature: float, spherical: bool) -> None:
    quantizer = LFQ(
        num_bits=bits,
        spherical=spherical,
        temperature=temperature,
        entropy_weight=0.3,
        diversity=0.7,
        commitment_weight=0.2,
    )
    given = vectors(50, bits).requires_grad_()
    _, ids, loss = quantizer.quantize(given)
    loss.backward()
    exact = given.detach().double().requires_grad_()
    v = F.normalize(exact, dim=-1) if spherical else exact
    sample, codebook = brute_force(quantizer, v)
    commitment = (v - quantizer.codes(ids).double()).square().mean()
    expected = 0.3 * (sample - 0.7 * codebook) + 0.2 * commitment
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spherical", [False, True])
def test_entropies_and_codes_match_vector_quantize_pytorch(spherical: bool) -> None:
    ours = LFQ(num_bits=5, spherical=spherical, temperature=0.5)
    library = LibraryLFQ(dim=5, codebook_size=32, spherical=spherical, commitment_loss_weight=1.0)
    given = vectors(40, 5)
    (features, _, _), told = library(given[None], inv_temperature=2.0, return_loss_breakdown=True)
    v = F.normalize(given, dim=-1) if spherical else given
    torch.testing.assert_close(ours.quantize(given)[0], features[0])
    torch.testing.assert_close(ours.entropies(v).sample, told.per_sample_entropy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.entropies(v).codebook, told.batch_entropy, rtol=1e-4, atol=1e-4)


def test_entropies_of_many_bits_need_no_table_of_vectors_by_codes() -> None:
    """18 bits, MAGVIT-v2's: a table of 4096 vectors by all codes would take 4 GiB."""
    quantizer = LFQ(num_bits=18, temperature=0.01)
    sample, codebook = quantizer.entropies(vectors(4096, 18, scale=100.0))
    assert sample < 1e-2, "far from every border, each vector is sure of its code"
    distinct = quantizer.eval().quantize(vectors(4096, 18))[1].bincount().double()
    shares = distinct[distinct > 0] / 4096
    assert codebook.item() == pytest.approx(-(shares * shares.log()).sum().item(), rel=1e-3)
    assert quantizer.entropies(torch.zeros(2, 18)).codebook.item() == pytest.approx(18 * math.log(2), rel=1e-4)


def test_vectors_far_from_the_border_keep_the_gradient_finite() -> None:
    given = vectors(30, 6, scale=1e4).requires_grad_()
    LFQ(num_bits=6).quantize(given)[2].backward()
    assert given.grad.isfinite().all()


def test_evaluation_has_no_loss_and_autocast_changes_nothing() -> None:
    quantizer = LFQ(num_bits=8)
    given = vectors(200, 8)
    exact = quantizer.quantize(given)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = quantizer.quantize(given)
    assert torch.equal(exact[1], lowered[1]) and torch.equal(exact[2], lowered[2])
    assert quantizer.eval().quantize(given)[2] == 0
