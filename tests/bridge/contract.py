"""What every bridge must do."""

from __future__ import annotations

import torch

from blip3o.bridge import Bridge
from blip3o.structures import ARStates
from tests.tiny import perturbed, rebuilt

IN, OUT = 12, 20


class BridgeContract:
    """Inherit, name the class `Test...` and give `bridge()`."""

    def bridge(self) -> Bridge:
        """A bridge from `IN` to `OUT` features."""
        raise NotImplementedError

    def states(self, rows: int = 3, positions: int = 5) -> ARStates:
        hidden = torch.randn(rows, positions, IN, generator=torch.Generator().manual_seed(4))
        mask = torch.ones(rows, positions, dtype=torch.bool)
        mask[1, :2] = False
        return ARStates(hidden, mask)

    def test_it_keeps_the_widths_it_is_built_with(self) -> None:
        bridge = self.bridge()
        assert (bridge.in_features, bridge.out_features) == (IN, OUT)
        assert bridge.reads == "image_tokens"

    def test_embeds_have_the_output_width_and_a_mask_of_their_length(self) -> None:
        conditioning = self.bridge()(self.states())
        assert conditioning.embeds.shape == (3, conditioning.mask.shape[1], OUT)
        assert conditioning.mask.dtype == torch.bool and len(conditioning.mask) == 3

    def test_positions_that_do_not_count_stay_without_effect_on_those_that_do(self) -> None:
        bridge = perturbed(self.bridge())
        states = self.states()
        other = ARStates(states.hidden.masked_fill(~states.mask[..., None], 9.0), states.mask)
        expected, actual = bridge(states), bridge(other)
        assert torch.equal(expected.mask, actual.mask)
        assert torch.equal(expected.embeds[expected.mask], actual.embeds[actual.mask])
        assert not actual.mask.all()

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        bridge, states = perturbed(self.bridge()), self.states()
        whole = bridge(states)
        alone = bridge(ARStates(states.hidden[2:], states.mask[2:]))
        torch.testing.assert_close(whole.embeds[2:], alone.embeds, rtol=0, atol=1e-5)

    def test_gradients_reach_every_parameter_and_the_states(self) -> None:
        bridge, states = perturbed(self.bridge()), self.states()
        states.hidden.requires_grad_()
        embeds = bridge(states).embeds
        (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
        for name, parameter in bridge.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert states.hidden.grad is not None and states.hidden.grad.abs().sum() > 0

    def test_its_config_builds_it_again(self) -> None:
        bridge = self.bridge()
        again = rebuilt(bridge)
        assert again.config() == bridge.config()
        again.load_state_dict(bridge.state_dict())
        assert torch.equal(again(self.states()).embeds, bridge(self.states()).embeds)
