"""Decoding without transformers' bookkeeping, for decoders of Llama's form: Llama, Qwen2 and Qwen3.

The arithmetic is that of transformers' modules. What is left out is what they do anew for every token: masks and
rotations are made once, keys and values lie in one place that is large enough, products that read the same states are
one, and the heads that share keys are asked together. The weights are read when a step is made and never kept longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from blip3o.ar.packing import FEWEST_ROWS, PACKED_FROM, Product, packs, product, stacked
from blip3o.ar.steps import States, Step
from blip3o.ar.tables import head_of

_KNOWN = {
    llama.LlamaModel: (llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm),
    qwen2.Qwen2Model: (qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm),
    qwen3.Qwen3Model: (qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm),
}
_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embeddings whose frequencies do not depend on the length."""

_OWN_HOOK = "output_capturing_hook"
"""Name of the hooks that transformers leaves on the layers; they do nothing to the states."""


def fits(lm: PreTrainedModel) -> bool:
    """Whether `LeanStep` computes what the model's own forward pass does: no module is wrapped, hooked or unknown."""
    decoder = lm.get_decoder()
    known = _KNOWN.get(type(decoder))
    config = lm.config
    if config._attn_implementation == "eager":
        return False  # the step's own attention is torch's `scaled_dot_product_attention`
    if known is None or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS or (decoder.training and config.attention_dropout > 0):
        return False
    plain = (*known, nn.Linear, nn.Embedding, nn.ModuleList, type(decoder), type(decoder.rotary_emb))
    activation = {id(layer.mlp.act_fn) for layer in decoder.layers if type(layer) is known[0]}
    for module in decoder.modules():
        if type(module) not in plain and id(module) not in activation:
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


@dataclass(frozen=True)
class _Layer:
    """What a step needs of a decoder layer.

    Attributes:
        before_attention, before_mlp: gains (H,) of its two norms.
        heads: gains (query and key heads, head width) of the norms of queries and keys, None without.
        qkv, out, gate_up, down: products.
        act: activation of its perceptron.
        cache: (B, 2, key heads, all positions, head width), keys and values.
    """

    before_attention: Tensor
    before_mlp: Tensor
    heads: Tensor | None
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    act: Callable[[Tensor], Tensor]
    cache: Tensor


class LeanStep(Step):
    """One token a row through a decoder that `fits`; rows are padded to `FEWEST_ROWS` where packing gains by it.

    Args:
        lm: the model.
        cache: keys and values of the prompts (B rows).
        attention_mask: (B, T) bool, of the prompts.
        position: (B, 1) int64, positions of the prompts' last tokens.
        num_tokens: tokens to come, N.
        codes: range of the image ids.
        keep_layers: whether the states of all layers are given.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        cache: DynamicCache,
        attention_mask: Tensor,
        position: Tensor,
        num_tokens: int,
        codes: tuple[int, int],
        keep_layers: bool,
    ) -> None:
        decoder: Any = lm.get_decoder()
        config, device = lm.config, attention_mask.device
        self._embeddings = decoder.embed_tokens.weight
        weights = self._embeddings.dtype
        lowered = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type) if lowered else weights
        self._device = device.type
        self._rows = len(attention_mask)
        packed = num_tokens >= PACKED_FROM and packs(device, self._dtype)
        self._padded = max(self._rows, FEWEST_ROWS) if packed else self._rows
        self._width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._num_queries, self._num_keys = config.num_attention_heads, config.num_key_value_heads
        self._at = attention_mask.shape[1]
        self._keep_layers = keep_layers

        def product_of(*linears: nn.Linear, rows: slice = slice(None)) -> Product:
            biases = [None if one.bias is None else one.bias[rows] for one in linears]
            weight, bias = stacked([one.weight[rows] for one in linears], biases, self._dtype)
            multiply = product(weight, bias, self._padded, packed=packed)
            return (lambda x: multiply(x.to(self._dtype))) if lowered else multiply

        def room(*stored: Tensor) -> Tensor:
            """Keys and values (B, key heads, T, head width) as one, with room for the tokens to come."""
            rows, heads, length, width = stored[0].shape
            whole = stored[0].new_zeros((rows, len(stored), heads, length + num_tokens, width), dtype=self._dtype)
            whole[:, :, :, :length] = torch.stack(stored, dim=1)
            return whole

        self._layers = []
        for layer, stored in zip(decoder.layers, cache.layers, strict=True):
            assert isinstance(stored, DynamicLayer) and stored.keys is not None and stored.values is not None
            attention = layer.self_attn
            self._layers.append(
                _Layer(
                    before_attention=layer.input_layernorm.weight.detach(),
                    before_mlp=layer.post_attention_layernorm.weight.detach(),
                    heads=self._head_gains(attention),
                    qkv=product_of(attention.q_proj, attention.k_proj, attention.v_proj),
                    out=product_of(attention.o_proj),
                    gate_up=product_of(layer.mlp.gate_proj, layer.mlp.up_proj),
                    down=product_of(layer.mlp.down_proj),
                    act=F.silu if isinstance(layer.mlp.act_fn, nn.SiLU) else layer.mlp.act_fn,
                    cache=room(stored.keys, stored.values),
                )
            )
        self._norm = decoder.norm.weight.detach()
        self._eps = torch.tensor(float(config.rms_norm_eps), device=device)
        self._head = product_of(head_of(lm), rows=slice(*codes))
        positions = position + 1 + torch.arange(num_tokens, device=device)
        cos, sin = decoder.rotary_emb(self._embeddings[:1, None].detach(), positions)
        sin = torch.cat([-sin[..., : self._width // 2], sin[..., self._width // 2 :]], dim=-1)
        self._cos, self._sin = (rearrange(t, "b n d -> n b 1 d").contiguous() for t in (cos, sin))
        self._first = self._at
        self._mask = None
        if not attention_mask.all():
            hidden = F.pad(~attention_mask, (0, num_tokens))[:, None, None]
            self._mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, -torch.inf)
        # Rows of padding stay zero.
        self._mixed = torch.zeros(self._padded, self._num_queries * self._width, dtype=self._dtype, device=device)

    def _head_gains(self, attention: Any) -> Tensor | None:
        """Gains of the norms of queries and keys, one row a head."""
        if not hasattr(attention, "q_norm"):
            return None
        norms = ((attention.q_norm, self._num_queries), (attention.k_norm, self._num_keys))
        return torch.cat([repeat(norm.weight.detach(), "d -> h d", h=count) for norm, count in norms])

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> tuple[Tensor, States | None]:
        """Reads the next token of every row."""
        with torch.autocast(self._device, enabled=False):
            x = F.embedding(ids, self._embeddings)
            if self._padded > self._rows:
                x = F.pad(x, (0, 0, 0, self._padded - self._rows))
            now = self._at - self._first
            cos, sin = self._cos[now], self._sin[now]
            mask = None if self._mask is None else self._mask[..., : self._at + 1]
            states = [x]
            for layer in self._layers:
                x = x + layer.out(self._attend(layer, self._normed(x, layer.before_attention), cos, sin, mask))
                gate, up = layer.gate_up(self._normed(x, layer.before_mlp)).chunk(2, dim=-1)
                x = x + layer.down(layer.act(gate).mul_(up))
                states.append(x)
            states[-1] = x = self._normed(x, self._norm)
            self._at += 1
        kept = tuple(state[: self._rows, None] for state in states) if self._keep_layers else None
        return x[: self._rows], kept

    def _normed(self, x: Tensor, gain: Tensor) -> Tensor:
        """The RMS norm over the last axis, in float32 up to the gain."""
        exact = x.float()
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (exact * scale).to(x.dtype) * gain

    def _attend(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Attention's output (padded rows, heads * width), before its last product, of normed states."""
        rows, queries, keys = self._rows, self._num_queries, self._num_keys
        heads = layer.qkv(x).narrow(0, 0, rows).view(rows, queries + 2 * keys, self._width)
        turned = heads.narrow(1, 0, queries + keys)
        rotated = turned if layer.heads is None else self._normed(turned, layer.heads)
        torch.addcmul(rotated * cos, rotated.roll(self._width // 2, -1), sin, out=turned)
        layer.cache.select(3, self._at).copy_(heads.narrow(1, queries, 2 * keys).view(rows, 2, keys, self._width))
        # Heads that share keys are as many positions of one head, which reads its keys once.
        asked = heads.narrow(1, 0, queries).view(rows, keys, queries // keys, self._width)
        seen_keys, seen_values = layer.cache.narrow(3, 0, self._at + 1).unbind(1)
        mixed = F.scaled_dot_product_attention(asked, seen_keys, seen_values, attn_mask=mask).reshape(rows, -1)
        if rows == self._padded:
            return mixed
        self._mixed[:rows] = mixed
        return self._mixed

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Products over the image ids."""
        with torch.autocast(self._device, enabled=False):
            rows = len(hidden)
            return self._head(F.pad(hidden, (0, 0, 0, self._padded - rows)))[:rows]
