"""Decoding without transformers' bookkeeping, for decoders of Llama's form: Llama, Qwen2, Qwen3 and LFM2.

The arithmetic is that of transformers' modules. What is left out is what they do anew for every token: masks and
rotations are made once, what is kept of the past lies in one place that is large enough, products that read the same
states are one, and the heads that share keys are asked together. The weights are read when a step is made and never
kept longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.lfm2 import modeling_lfm2 as lfm2
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from blip3o.ar.lean_mixers import Attention, Mixer, Rotations, ShortConv, rms_norm
from blip3o.ar.packing import FEWEST_ROWS, PACKED_FROM, Product, packs, product, stacked
from blip3o.ar.start import Start
from blip3o.ar.steps import States, Step
from blip3o.ar.tables import head_of


@dataclass(frozen=True)
class _Form:
    """What a family calls the modules of its decoder and of a layer.

    Attributes:
        modules: all kinds of modules that it has beside torch's.
        eps: the norms' epsilon in its config.
        last_norm: the norm after all layers.
        norms: those before attention (or convolution) and before the perceptron.
        attention: the products of queries, keys, values, and the one after attention; then the norms of queries and
            keys, which not every family has.
        mlp: the perceptron, and its products: gate, up, down.
    """

    modules: tuple[type[nn.Module], ...]
    eps: str = "rms_norm_eps"
    last_norm: str = "norm"
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    mlp: tuple[str, ...] = ("mlp", "gate_proj", "up_proj", "down_proj")


FORMS: dict[type[nn.Module], _Form] = {
    llama.LlamaModel: _Form((llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm)),
    qwen2.Qwen2Model: _Form((qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm)),
    qwen3.Qwen3Model: _Form((qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm)),
    lfm2.Lfm2Model: _Form(
        (lfm2.Lfm2DecoderLayer, lfm2.Lfm2Attention, lfm2.Lfm2ShortConv, lfm2.Lfm2MLP, lfm2.Lfm2RMSNorm),
        eps="norm_eps",
        last_norm="embedding_norm",
        norms=("operator_norm", "ffn_norm"),
        attention=("q_proj", "k_proj", "v_proj", "out_proj", "q_layernorm", "k_layernorm"),
        mlp=("feed_forward", "w1", "w3", "w2"),
    ),
}
"""Decoders whose layers are known."""

_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embeddings whose frequencies do not depend on the length."""

_OWN_HOOK = "output_capturing_hook"
"""Name of the hooks that transformers leaves on the layers; they do nothing to the states."""


def fits(lm: PreTrainedModel) -> bool:
    """Whether `LeanStep` computes what the model's own forward pass does: no module is wrapped, hooked or unknown."""
    decoder = lm.get_decoder()
    form = FORMS.get(type(decoder))
    config = lm.config
    if config._attn_implementation == "eager":
        return False  # the step's own attention is torch's `scaled_dot_product_attention`
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if form is None or not layer_types <= {"full_attention", "conv"}:
        return False
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS or (decoder.training and getattr(config, "attention_dropout", 0) > 0):
        return False
    plain = (*form.modules, nn.Linear, nn.Conv1d, nn.Embedding, nn.ModuleList, type(decoder), type(decoder.rotary_emb))
    activations = {id(getattr(module, "act_fn", None)) for module in decoder.modules() if type(module) in form.modules}
    for module in decoder.modules():
        if type(module) not in plain and id(module) not in activations:
            return False
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "forward" in vars(module) or any(getattr(hook, "__name__", "") != _OWN_HOOK for hook in hooks):
            return False
    head = head_of(lm)
    parameters = [*decoder.parameters(), head.weight]
    return (
        type(head) is nn.Linear
        and all(type(parameter) is nn.Parameter for parameter in parameters)
        and len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1
        and not parameters[0].is_meta
    )


def head_width(config: PreTrainedConfig) -> int:
    """Of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


@dataclass(frozen=True)
class _Layer:
    """What a step needs of a decoder layer.

    Attributes:
        mixer: attention, or a convolution.
        before_mixer, before_mlp: gains (H,) of its two norms.
        gate_up, down: products.
        act: activation of its perceptron.
    """

    mixer: Mixer
    before_mixer: Tensor
    before_mlp: Tensor
    gate_up: Product
    down: Product
    act: Callable[[Tensor], Tensor]


class LeanStep(Step):
    """One token a row through a decoder that `fits`; rows are padded to `FEWEST_ROWS` where packing gains by it.

    Args:
        lm: the model.
        start: the prompts that it has read.
        num_tokens: tokens to come, N.
        codes: range of the image ids.
        keep_layers: whether the states of all layers are given.
    """

    def __init__(
        self, lm: PreTrainedModel, start: Start, num_tokens: int, codes: tuple[int, int], *, keep_layers: bool
    ) -> None:
        decoder: Any = lm.get_decoder()
        config, device, form = lm.config, start.attention_mask.device, FORMS[type(decoder)]
        self._embeddings = decoder.embed_tokens.weight
        weights = self._embeddings.dtype
        self._lowered = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type) if self._lowered else weights
        self._device = device.type
        self._rows = len(start.attention_mask)
        self._packed = num_tokens >= PACKED_FROM and packs(device, self._dtype)
        self._padded = max(self._rows, FEWEST_ROWS) if self._packed else self._rows
        self._now = 0
        self._keep_layers = keep_layers
        self._eps = torch.tensor(float(getattr(config, form.eps)), device=device)
        self._norm = getattr(decoder, form.last_norm).weight.detach()
        self._head = self._product_of(head_of(lm), rows=slice(*codes))
        positions = start.position + 1 + torch.arange(num_tokens, device=device)
        cos, sin = decoder.rotary_emb(self._embeddings[:1, None].detach(), positions)
        rotations = Rotations(cos, sin, start.attention_mask, self._dtype)
        self._layers = []
        for layer, stored in zip(decoder.layers, start.cache.layers, strict=True):
            mlp = getattr(layer, form.mlp[0])
            gate, up, down = (getattr(mlp, name) for name in form.mlp[1:])
            before_mixer, before_mlp = (getattr(layer, name).weight.detach() for name in form.norms)
            act = getattr(mlp, "act_fn", None)
            mixer: Mixer
            if hasattr(layer, "self_attn"):
                parts: list[Any] = [getattr(layer.self_attn, name, None) for name in form.attention]
                qkv, out = self._product_of(*parts[:3]), self._product_of(parts[3])
                mixer = Attention(config, qkv, out, parts[4:], rotations, self._eps, stored, self._padded)
            else:
                read, written = self._product_of(layer.conv.in_proj), self._product_of(layer.conv.out_proj)
                mixer = ShortConv(layer.conv.conv, read, written, stored, num_tokens, self._padded, self._dtype)
            self._layers.append(
                _Layer(
                    mixer=mixer,
                    before_mixer=before_mixer,
                    before_mlp=before_mlp,
                    gate_up=self._product_of(gate, up),
                    down=self._product_of(down),
                    act=F.silu if act is None or isinstance(act, nn.SiLU) else act,
                )
            )

    def _product_of(self, *linears: nn.Linear, rows: slice = slice(None)) -> Product:
        """The products of linear layers that read the same states, as one."""
        biases = [None if one.bias is None else one.bias[rows] for one in linears]
        weight, bias = stacked([one.weight[rows] for one in linears], biases, self._dtype)
        multiply = product(weight, bias, self._padded, packed=self._packed)
        return (lambda x: multiply(x.to(self._dtype))) if self._lowered else multiply

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> tuple[Tensor, States | None]:
        """Reads the next token of every row."""
        with torch.autocast(self._device, enabled=False):
            x = F.embedding(ids, self._embeddings)
            if self._padded > self._rows:
                x = F.pad(x, (0, 0, 0, self._padded - self._rows))
            states = [x]
            for layer in self._layers:
                x = x + layer.mixer(rms_norm(x, layer.before_mixer, self._eps), self._now)
                gate, up = layer.gate_up(rms_norm(x, layer.before_mlp, self._eps)).chunk(2, dim=-1)
                x = x + layer.down(layer.act(gate).mul_(up))
                states.append(x)
            states[-1] = x = rms_norm(x, self._norm, self._eps)
            self._now += 1
        kept = tuple(state[: self._rows, None] for state in states) if self._keep_layers else None
        return x[: self._rows], kept

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Products over the image ids."""
        with torch.autocast(self._device, enabled=False):
            rows = len(hidden)
            return self._head(F.pad(hidden, (0, 0, 0, self._padded - rows)))[:rows]
