"""The dataclasses: null and dropped states, rows of a condition, moving sequences."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from blip3o.structures import ARStates, Conditioning, Sequences

STATES = ARStates(torch.arange(1.0, 25.0).reshape(3, 2, 4), torch.tensor([[True, True], [False, True], [True, True]]))


def test_null_states_are_zeros_that_still_count() -> None:
    null = STATES.null()
    assert torch.equal(null.hidden, torch.zeros(3, 2, 4))
    assert torch.equal(null.mask, STATES.mask)
    assert STATES.hidden.min() == 1, "the states themselves were changed"


def test_dropping_sets_the_chosen_rows_to_null_and_keeps_the_others() -> None:
    dropped = STATES.drop(torch.tensor([False, True, False]))
    assert torch.equal(dropped.hidden[1], torch.zeros(2, 4))
    assert torch.equal(dropped.hidden[[0, 2]], STATES.hidden[[0, 2]])
    assert torch.equal(dropped.mask, STATES.mask)
    assert torch.equal(STATES.drop(torch.ones(3, dtype=torch.bool)).hidden, STATES.null().hidden)
    assert torch.equal(STATES.drop(torch.zeros(3, dtype=torch.bool)).hidden, STATES.hidden)


def test_layers_are_dropped_with_the_rest_and_rows_are_chosen_from_all() -> None:
    layers = torch.stack([STATES.hidden, STATES.hidden + 1], dim=1)
    states = ARStates(STATES.hidden, STATES.mask, layers)
    assert not states.null().layers.any() and states.null().layers.shape == layers.shape  # type: ignore[union-attr]
    dropped = states.drop(torch.tensor([False, True, False])).layers
    assert not dropped[1].any() and torch.equal(dropped[[0, 2]], layers[[0, 2]])  # type: ignore[index]
    rows = states[torch.tensor([2, 0])]
    for part, whole in ((rows.hidden, states.hidden), (rows.mask, states.mask), (rows.layers, layers)):
        assert torch.equal(part, whole[[2, 0]])  # type: ignore[arg-type, index]
    plain = ARStates(STATES.hidden)[1:]
    assert len(plain.hidden) == 2 and plain.mask is None and plain.layers is None


def test_no_gradient_passes_a_dropped_row() -> None:
    hidden = STATES.hidden.clone().requires_grad_()
    ARStates(hidden, STATES.mask).drop(torch.tensor([True, False, False])).hidden.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.sum(dim=(1, 2)).tolist() == [0.0, 8.0, 8.0]


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])])
def test_rows_of_a_condition_keep_their_masks(rows: torch.Tensor | slice) -> None:
    chosen = Conditioning(STATES.hidden, STATES.mask)[rows]
    assert torch.equal(chosen.embeds, STATES.hidden[1:])
    assert torch.equal(chosen.mask, STATES.mask[1:])


def test_a_mask_appears_where_one_of_two_conditions_has_it() -> None:
    masked, plain = Conditioning(STATES.hidden, STATES.mask), Conditioning(STATES.hidden + 1)
    assert plain.stacked_on(plain).mask is None and plain[1:].mask is None
    both = masked.stacked_on(plain)
    assert torch.equal(both.embeds, torch.cat([plain.embeds, masked.embeds]))
    assert both.mask is not None and masked.mask is not None
    assert torch.equal(both.mask, torch.cat([torch.ones(3, 2, dtype=torch.bool), masked.mask]))
    more = torch.zeros(3, 5, 4)
    assert plain.followed_by(more).mask is None
    assert plain.num_appended == 0 and plain.followed_by(more).followed_by(more)[1:].num_appended == 10
    assert plain.followed_by(more).stacked_on(masked.followed_by(more)).num_appended == 5
    longer = masked.followed_by(more)
    assert longer.embeds.shape == (3, 7, 4)
    assert longer.mask is not None and longer.mask[:, 2:].all() and torch.equal(longer.mask[:, :2], masked.mask)


def test_sequences_move_whole() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    moved = Sequences(ids, ids.bool(), ids, ids.bool(), ids.bool()).to("meta")
    for field in dataclasses.fields(moved):
        value = getattr(moved, field.name)
        assert value.device.type == "meta" and value.shape == (2, 3)


def test_what_passes_between_parts_can_not_be_changed_in_passing() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        STATES.hidden = torch.zeros(1)  # type: ignore[misc]


def test_appended_positions_are_exchanged_for_those_of_another() -> None:
    one, other = Conditioning(STATES.hidden, STATES.mask), Conditioning(STATES.hidden + 100)
    assert torch.equal(one.with_appended_of(other).embeds, one.embeds), "nothing was appended"
    last = torch.full((3, 1, 4), 7.0)
    both = one.followed_by(torch.zeros(3, 1, 4)).with_appended_of(other.followed_by(last))
    assert torch.equal(both.embeds, torch.cat([one.embeds, last], dim=1))
    assert both.num_appended == 1 and torch.equal(both.mask, torch.cat([STATES.mask, torch.ones(3, 1) > 0], dim=1))  # type: ignore[list-item]
