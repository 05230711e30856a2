"""What every bridge must do."""

from __future__ import annotations

import pytest
import torch

from blip3o.bridge import Bridge, Reads
from blip3o.structures import ARStates
from tests.tiny import perturbed, rebuilt

IN, OUT = 12, 20


class BridgeContract:
    """Inherit, name the class `Test...` and give `bridge()`."""

    reads: Reads = "image_tokens"

    def bridge(self) -> Bridge:
        """The same bridge from `IN` to `OUT` features at every call."""
        raise NotImplementedError

    def states(self, rows: int = 3, positions: int = 5) -> ARStates:
        """Random states of which two do not count; they hold as many layers as the bridge asks for."""
        generator = torch.Generator().manual_seed(4)
        hidden = torch.randn(rows, positions, IN, generator=generator)
        mask = torch.ones(rows, positions, dtype=torch.bool)
        mask[1, :2] = False
        count = len(self.bridge().ar_layers)
        layers = torch.randn(rows, count, positions, IN, generator=generator) if count else None
        return ARStates(hidden, mask, layers)

    def test_it_keeps_the_widths_it_is_built_with_and_says_what_it_reads(self) -> None:
        bridge = self.bridge()
        assert (bridge.in_features, bridge.out_features) == (IN, OUT)
        assert bridge.reads == self.reads
        assert bridge.needs_tokens is (self.reads in ("image_tokens", "token_embeds"))
        if self.reads == "queries":
            assert bridge.queries is not None and bridge.queries.shape == (bridge.num_queries, IN)
        else:
            assert bridge.queries is None and bridge.num_queries is None

    def test_embeds_have_the_output_width_and_as_many_positions_as_it_says(self) -> None:
        bridge, states = self.bridge(), self.states()
        conditioning = bridge(states)
        assert conditioning.embeds.shape == (3, bridge.num_positions(5), OUT)
        mask = conditioning.full_mask()
        assert mask.dtype == torch.bool and mask.shape == conditioning.embeds.shape[:2]
        assert bridge.num_positions(None) in (None, bridge.num_positions(5))
        if bridge.num_positions(None) is None:
            assert bridge.num_positions(7) == 7 and torch.equal(mask, states.mask)
            assert bridge(ARStates(states.hidden, None, states.layers)).mask is None

    def test_positions_that_do_not_count_stay_without_effect_on_those_that_do(self) -> None:
        bridge = perturbed(self.bridge())
        states = self.states()
        uncounted = ~states.mask[..., None]
        layers = None if states.layers is None else states.layers.masked_fill(uncounted[:, None], 9.0)
        other = ARStates(states.hidden.masked_fill(uncounted, 9.0), states.mask, layers)
        expected, actual = bridge(states), bridge(other)
        counted = expected.full_mask()
        assert torch.equal(counted, actual.full_mask())
        torch.testing.assert_close(expected.embeds[counted], actual.embeds[counted], rtol=0, atol=1e-6)

    def test_every_state_that_counts_matters(self) -> None:
        bridge, states = perturbed(self.bridge()), self.states()
        expected = bridge(states).embeds
        for position in range(5):
            at = torch.zeros(5, dtype=torch.bool)
            at[position] = True
            layers = None if states.layers is None else states.layers.masked_fill(at[:, None], 2.0)
            changed = ARStates(states.hidden.masked_fill(at[:, None], 2.0), states.mask, layers)
            assert (bridge(changed).embeds - expected)[0].abs().max() > 1e-4

    @pytest.mark.parametrize("gradient", [True, False], ids=["with gradient", "without"])
    def test_a_row_does_not_depend_on_the_others(self, gradient: bool) -> None:
        bridge, states = perturbed(self.bridge()).eval(), self.states()
        with torch.set_grad_enabled(gradient):
            whole = bridge(states)
            for row in range(3):
                alone = bridge(states[row : row + 1])
                counted = alone.full_mask()[0]
                torch.testing.assert_close(whole.embeds[row, counted], alone.embeds[0, counted], rtol=0, atol=1e-5)

    def test_no_rows_give_none(self) -> None:
        bridge = self.bridge()
        assert bridge(self.states()[:0]).embeds.shape == (0, bridge.num_positions(5), OUT)

    def test_gradients_reach_every_parameter_and_the_states(self) -> None:
        bridge, states = perturbed(self.bridge()), self.states()
        given = states.hidden if states.layers is None else states.layers
        given.requires_grad_()
        embeds = bridge(states).embeds
        (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
        for name, parameter in bridge.named_parameters():
            if name != "queries":  # the AR model reads these
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert given.grad is not None and given.grad.abs().sum() > 0

    def test_null_states_tell_nothing_but_their_number(self) -> None:
        bridge, states = perturbed(self.bridge()), self.states()
        null = bridge(states.null())
        assert null.embeds.isfinite().all() and null.embeds.abs().max() > 1e-3
        other = ARStates(states.hidden + 1, states.mask, None if states.layers is None else states.layers + 1)
        assert torch.equal(null.embeds, bridge(other.null()).embeds)
        assert (null.embeds - bridge(states).embeds).abs().max() > 1e-3
        dropped = bridge(states.drop(torch.tensor([True, False, False]))).embeds
        torch.testing.assert_close(dropped[0], null.embeds[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(dropped[2], bridge(states).embeds[2], rtol=0, atol=1e-5)

    def test_its_config_builds_it_again(self) -> None:
        bridge = self.bridge()
        again = rebuilt(bridge)
        assert again.config() == bridge.config()
        again.load_state_dict(bridge.state_dict())
        assert torch.equal(again(self.states()).embeds, bridge(self.states()).embeds)
