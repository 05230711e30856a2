"""Muon: its updates are orthogonal, of AdamW's size, and its state survives saving."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from blip3o.training.muon import Muon, orthogonalize


def matrix(rows: int, columns: int, seed: int, singular_values: torch.Tensor | None = None) -> torch.Tensor:
    """A random matrix, with the given singular values where there are any."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if singular_values is None:
        return values
    left, _, right = torch.linalg.svd(values, full_matrices=False)
    return left @ torch.diag(singular_values) @ right


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 40), (40, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_end_near_one_and_vectors_stay(rows: int, columns: int, scale: float) -> None:
    spread = torch.logspace(-1.5, 0, min(rows, columns))
    matrices = scale * torch.stack([matrix(rows, columns, seed, spread) for seed in range(3)])
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    for before, after in zip(matrices, result, strict=True):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        turned = left.T @ after @ right.T
        torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=0, atol=1e-3)
        assert turned.diagonal().min() > 0


def test_a_zero_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 5)), torch.zeros(2, 4, 5))


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (12, 48), (48, 12)])
def test_an_update_has_a_fifth_of_the_learning_rate_as_root_mean_square(rows: int, columns: int) -> None:
    """As AdamW's has (arXiv 2502.16982), for any shape."""
    parameter = nn.Parameter(torch.zeros(rows, columns))
    parameter.grad = matrix(rows, columns, seed=0)
    Muon([parameter], lr=0.1).step()
    size = parameter.detach().square().mean().sqrt() / 0.1
    assert 0.13 < size < 0.25
    assert (parameter.detach() * parameter.grad).sum() < 0, "a step goes down the gradient"


def test_the_momentum_is_nesterovs() -> None:
    """The second update is that of 0.1 of the new gradient and 0.9 of the new average."""
    first, second = matrix(6, 9, 0), matrix(6, 9, 1)
    parameter = nn.Parameter(torch.zeros(6, 9))
    optimizer = Muon([parameter], lr=1.0, momentum=0.9)
    for grad in (first, second):
        before = parameter.detach().clone()
        parameter.grad = grad
        optimizer.step()
    average = 0.9 * (0.1 * first) + 0.1 * second
    expected = -0.2 * 3 * orthogonalize((0.1 * second + 0.9 * average)[None])[0]
    torch.testing.assert_close(parameter.detach() - before, expected)


def test_weight_decay_is_decoupled() -> None:
    plain, decayed = nn.Parameter(matrix(4, 4, 0)), nn.Parameter(matrix(4, 4, 0))
    for parameter, decay in ((plain, 0.0), (decayed, 0.5)):
        parameter.grad = matrix(4, 4, 1)
        Muon([parameter], lr=0.1, weight_decay=decay).step()
    torch.testing.assert_close(decayed.detach(), plain.detach() - 0.05 * matrix(4, 4, 0))


def test_matrices_of_one_shape_are_updated_as_each_alone() -> None:
    together = [nn.Parameter(matrix(5, 7, seed)) for seed in range(3)]
    alone = copy.deepcopy(together)
    for group in (together, alone):
        for seed, parameter in enumerate(group):
            parameter.grad = matrix(5, 7, 10 + seed)
    Muon(together, lr=0.1).step()
    for parameter in alone:
        Muon([parameter], lr=0.1).step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_without_a_gradient_stay() -> None:
    still, moved = nn.Parameter(matrix(4, 4, 0)), nn.Parameter(matrix(4, 4, 0))
    moved.grad = matrix(4, 4, 1)
    Muon([still, moved], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still.detach(), matrix(4, 4, 0))
    assert not torch.equal(moved.detach(), matrix(4, 4, 0))


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match=r"\(3,\); Muon takes matrices only"):
        Muon([nn.Parameter(torch.zeros(3))])
