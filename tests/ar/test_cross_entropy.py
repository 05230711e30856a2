"""The tiled cross-entropy against torch's own over all logits: losses, gradients, autocast, parts of the table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.ar import cross_entropy
from blip3o.ar.cross_entropy import linear_cross_entropy
from blip3o.ar.logits import LogitShape

POSITIONS, WIDTH, ROWS = 13, 8, 50
EVERY, SOME = (0, ROWS), (21, 47)


def numbers(ids: tuple[int, int] = EVERY, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, table, bias and targets."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((POSITIONS, WIDTH), (ROWS, WIDTH), (ROWS,))
    made = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]
    return made[0], made[1], made[2], torch.randint(*ids, (POSITIONS,), generator=generator)


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, ids: tuple[int, int], bias: Tensor | None, shape: LogitShape
) -> Tensor:
    """What is computed, by its definition."""
    logits = shape(F.linear(hidden, weight, bias)[:, slice(*ids)].float())
    return F.cross_entropy(logits, targets - ids[0], reduction="sum")


@pytest.mark.parametrize("tile_logits", [None, 5 * POSITIONS, 1])
@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.25), LogitShape(2.0, cap=3.0)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ids", [EVERY, SOME])
def test_loss_and_gradients_are_those_over_all_logits(
    ids: tuple[int, int], with_bias: bool, shape: LogitShape, tile_logits: int | None
) -> None:
    hidden, weight, bias, targets = numbers(ids)
    trained = [hidden, weight, *([bias] if with_bias else [])]
    given = bias if with_bias else None
    expected = plain(hidden, weight, targets, ids, given, shape)
    ours = linear_cross_entropy(hidden, weight, targets, ids, bias=given, shape=shape, tile_logits=tile_logits)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(expected / 7, trained)
    torch.testing.assert_close(torch.autograd.grad(ours / 7, trained), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile_logits", [None, 5 * POSITIONS])
def test_gradients_are_those_of_finite_differences(tile_logits: int | None) -> None:
    hidden, weight, bias, targets = numbers(SOME, torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shape = LogitShape(0.5, cap=4.0)
        return linear_cross_entropy(hidden, weight, targets, SOME, bias=bias, shape=shape, tile_logits=tile_logits)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("tile_logits", [None, 5 * POSITIONS])
def test_under_autocast_products_are_lowered_and_nothing_else(tile_logits: int | None) -> None:
    """The loss is that of lowered products; gradients have the precision of the numbers they belong to."""
    hidden, weight, _, targets = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets, EVERY, tile_logits=tile_logits)
        logits = F.linear(hidden, weight).float()
    torch.testing.assert_close(ours, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(ours / 800, (hidden, weight))
    assert all(one.dtype == torch.float32 for one in gradients)
    wanted = torch.autograd.grad(plain(hidden, weight, targets, EVERY, None, LogitShape()) / 800, (hidden, weight))
    for one, other in zip(gradients, wanted, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


def test_weights_in_half_precision_keep_theirs() -> None:
    hidden, weight, _, targets = numbers()
    low = [one.detach().bfloat16().requires_grad_() for one in (hidden, weight)]
    ours = linear_cross_entropy(*low, targets, EVERY)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain(*low, targets, EVERY, None, LogitShape()), rtol=1e-6, atol=1e-6)
    assert [one.dtype for one in torch.autograd.grad(ours, low)] == [torch.bfloat16] * 2


def test_what_is_frozen_gets_no_gradient_and_no_position_is_no_loss() -> None:
    hidden, weight, _, targets = numbers()
    frozen = linear_cross_entropy(hidden, weight.detach(), targets, EVERY)
    frozen.backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, EVERY), frozen)
    empty = linear_cross_entropy(hidden[:0], weight, targets[:0], EVERY)
    empty.backward()
    assert empty == 0 and weight.grad is not None and not weight.grad.any()


def test_the_backward_pass_can_be_repeated() -> None:
    hidden, weight, _, targets = numbers()
    for tile_logits in (None, 5 * POSITIONS):
        loss = linear_cross_entropy(hidden, weight, targets, EVERY, tile_logits=tile_logits)
        once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        again = torch.autograd.grad(loss, (hidden, weight))
        assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_no_more_than_a_tile_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that either pass makes is seen; the largest is a tile or what a table's gradient takes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = function(*args, **(kwargs or {}))
            for one in made if isinstance(made, tuple | list) else [made]:
                if isinstance(one, Tensor) and function is not torch.ops.aten.detach.default:
                    self.seen = max(self.seen, one.numel())
            return made

    monkeypatch.setattr(cross_entropy, "FEWEST_IDS", 64)
    hidden = torch.randn(256, 4, requires_grad=True)
    weight, targets = torch.randn(10_000, 4), torch.randint(0, 10_000, (256,))
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, (0, 10_000), tile_logits=2**16).backward()
    assert largest.seen == 2**16
