"""Optimizers and schedules: who is trained by what, resuming, and the learning rate at every step."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from blip3o.bridge import PerceiverBridge
from blip3o.training.muon import Muon
from blip3o.training.optimization import MuonAdamW, build_optimizer, build_schedule
from tests.tiny import seeded


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 8)
        self.conv = nn.Conv2d(1, 1, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(ids)))) + self.conv(torch.ones(1, 1, 3, 3)).sum()


def net() -> Net:
    with seeded(0):
        return Net()


def train(model: Net, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), ids % 3).backward()
        optimizer.step()


def muon_adamw(model: Net, **arguments: float) -> Optimizer:
    return build_optimizer(model.named_parameters(), name="muon", lr=0.02, **arguments)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_muon_takes_the_hidden_matrices_and_adamw_all_others() -> None:
    model = net()
    optimizer = muon_adamw(model, adamw_lr=0.3, weight_decay=0.1)
    assert isinstance(optimizer, MuonAdamW)
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon) and isinstance(adamw, AdamW)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(model.hidden.weight)]
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert taken == {id(p) for p in model.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(taken), "none is trained twice"
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_learned_queries_are_no_hidden_matrices() -> None:
    bridge = PerceiverBridge(8, 8, num_latents=4, num_heads=2, depth=1, reads="queries", num_queries=4)
    optimizer = build_optimizer(bridge.named_parameters(), name="muon", lr=0.02)
    assert isinstance(optimizer, MuonAdamW)
    by_adamw = {id(p) for p in optimizer.parts[1].param_groups[0]["params"]}
    assert {id(bridge.queries), id(bridge.latent_queries)} <= by_adamw
    assert id(bridge.proj_out.weight) not in by_adamw


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model.hidden.requires_grad_(False)
    for name in ("muon", "adamw"):
        optimizer = build_optimizer(model.named_parameters(), name=name, lr=0.1)  # type: ignore[arg-type]
        taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert taken == {id(p) for p in model.parameters() if p.requires_grad}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        build_optimizer(model.named_parameters(), name="adamw", lr=0.1)


def test_one_step_is_a_step_of_each() -> None:
    together, apart = net(), net()
    train(together, muon_adamw(together, weight_decay=0.1), range(1))
    muon = Muon([apart.hidden.weight], lr=0.02, weight_decay=0.1)
    others = [p for p in apart.parameters() if p is not apart.hidden.weight]
    adamw = AdamW(others, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    train(apart, muon, range(1))
    adamw.step()
    assert same(together, apart)
    assert not same(together, net())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_run_resumed_from_a_saved_state_continues_identically(name: str) -> None:
    whole = net()
    optimizer = build_optimizer(whole.named_parameters(), name=name, lr=0.02)  # type: ignore[arg-type]
    train(whole, optimizer, range(3))
    resumed, forgetful, buffer = copy.deepcopy(whole), copy.deepcopy(whole), io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    train(whole, optimizer, range(3, 6))
    buffer.seek(0)
    again = build_optimizer(resumed.named_parameters(), name=name, lr=0.5)  # type: ignore[arg-type]
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    train(resumed, again, range(3, 6))
    assert same(resumed, whole)
    fresh = build_optimizer(forgetful.named_parameters(), name=name, lr=0.02)  # type: ignore[arg-type]
    train(forgetful, fresh, range(3, 6))
    assert not same(forgetful, whole), "the state matters"


def test_a_schedule_goes_on_after_the_state_is_loaded() -> None:
    """Loading replaces the groups; the schedule must scale the new ones."""
    model = net()
    optimizer = muon_adamw(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule = build_schedule(optimizer, name="linear", warmup_steps=0, total_steps=4)
    train(model, optimizer, range(1))
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == pytest.approx([0.015, 0.015])  # type: ignore[attr-defined]
    before = model.hidden.weight.detach().clone()
    for part in optimizer.parts:  # type: ignore[attr-defined]
        part.param_groups[0]["lr"] = 0.0
    train(model, optimizer, range(1, 2))
    assert torch.equal(model.hidden.weight.detach(), before)


def rates(**arguments: float | str) -> list[float]:
    """The learning rate of every step and the one after the last, for a peak of 1."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    total = int(arguments["total_steps"])
    schedule = build_schedule(optimizer, **arguments)  # type: ignore[arg-type]
    found = []
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    found = rates(name="linear", warmup_steps=4, total_steps=12)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[5:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0])


def test_cosine_decays_along_half_a_wave_to_the_minimum() -> None:
    found = rates(name="cosine", warmup_steps=0, total_steps=10, min_ratio=0.1)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert found == pytest.approx(expected)
    assert found[0] == 1.0 and found[-1] == pytest.approx(0.1)


def test_the_rate_stays_flat_until_the_part_that_decays() -> None:
    found = rates(name="linear", warmup_steps=2, total_steps=10, decay_fraction=0.4, min_ratio=0.5)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5])


def test_the_rate_stays_at_the_minimum_beyond_the_end() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, name="cosine", warmup_steps=3, total_steps=5, min_ratio=0.2)
    for _ in range(20):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
