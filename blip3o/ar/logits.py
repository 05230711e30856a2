"""What a causal LM does to the products of its head: nothing, a factor, a soft cap."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LogitShape:
    """Logits as a function of the head's products: `cap * tanh(factor * products / cap)`, or no cap.

    Attributes:
        factor: what the products are multiplied with (Cohere's `logit_scale`, Granite's `logits_scaling`).
        cap: largest logit (Gemma's `final_logit_softcapping`), None for no cap.
    """

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        """Logits of the head's products, of any shape."""
        if self.factor != 1.0:
            products = products * self.factor
        return products if self.cap is None else self.cap * torch.tanh(products / self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits by the head's products, of the logits themselves."""
        return self.factor if self.cap is None else self.factor * (1 - (logits / self.cap).square())


@torch.compiler.disable
@torch.no_grad()
def read_logit_shape(lm: PreTrainedModel) -> LogitShape:
    """Reads off the model's own forward pass what it does to the products of its head.

    Architectures name and apply it in their own ways, so the forward pass is run with numbers in place of the
    decoder's states and a head that passes them on. No weight is read, so the model may be of any size.

    Raises:
        ValueError: if it is anything but a factor and a soft cap.
    """
    small, large = 1e-4, 1e6
    numbers = torch.tensor([small, -3.0, 0.5, 7.0, 60.0, large], dtype=torch.float64, device="cpu")
    try:
        probe = _without_weights(lm, numbers)
        read = probe.forward(inputs_embeds=numbers[None, None], use_cache=False).logits.flatten().double()
        factor, most = _tidy(read[0] / small), _tidy(read[-1])
        shape = LogitShape(factor, None if abs(most - factor * large) < 1e-3 * abs(factor * large) else most)
        fits = torch.allclose(shape(numbers), read, rtol=1e-4, atol=1e-6)
    except Exception as error:
        raise ValueError(f"can not see how {type(lm).__name__} makes its logits ({error!r}); use another.") from error
    if not fits:
        raise ValueError(
            f"{type(lm).__name__} makes of {numbers.tolist()} the logits {read.tolist()}, which is no factor and soft "
            "cap; use another architecture."
        )
    return shape


def _without_weights(lm: PreTrainedModel, hidden: Tensor) -> nn.Module:
    """A shallow copy of a model whose decoder gives `hidden` (C,) and whose head passes it on."""
    decoder = copy.copy(lm.get_decoder())
    decoder._forward_hooks, decoder._forward_pre_hooks = OrderedDict(), OrderedDict()
    decoder.forward = lambda *args, **kwargs: _Output(hidden[None, None])
    replaced = {id(lm.get_decoder()): decoder, id(lm.get_output_embeddings()): _PassOn(numbers=hidden)}

    def rebuilt(module: nn.Module) -> nn.Module:
        if id(module) in replaced:
            return replaced[id(module)]
        if not any(id(inner) in replaced for inner in module.modules()):
            return module
        new = copy.copy(module)
        new._modules = {name: child and rebuilt(child) for name, child in module._modules.items()}
        return new

    return rebuilt(lm)


class _PassOn(nn.Identity):
    """A head that gives what it reads; its weight tells the dtype, which state-space models ask for."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.weight = numbers


class _Output:
    """A decoder's output: its last hidden states, and None for whatever else a model looks for."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


def _tidy(value: Tensor) -> float:
    """A number as its config states it: six digits, without the noise of the probe."""
    return float(f"{float(value):.6g}")
