"""One token a row in one call of the compiled kernel, for Llama, Qwen2 and Qwen3 on a CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.cache_utils import DynamicLayer

from blip3o.ar.compiled.build import library
from blip3o.ar.lean import FORMS, fits, head_width
from blip3o.ar.packing import stacked
from blip3o.ar.start import Start
from blip3o.ar.steps import States, Step
from blip3o.ar.tables import head_of

MOST_ROWS = 16
"""Rows up to which the kernel is the faster one: beyond them oneDNN's products, which `LeanStep` takes, are."""

_LANES = 16
_SILU = (nn.SiLU, SiLUActivation)
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class _Layer(ctypes.Structure):
    """`Layer` of the kernel's source."""

    _fields_ = [
        *((name, _POINTER) for name in ("qkv", "qkv_bias", "out", "out_bias")),
        *((name, _POINTER) for name in ("gate_up", "gate_up_bias", "down", "down_bias")),
        *((name, _POINTER) for name in ("before_mixer", "before_mlp", "query_norm", "key_norm", "cache")),
    ]


class _Decoder(ctypes.Structure):
    """`Decoder` of the kernel's source."""

    _fields_ = [
        *((name, _INT) for name in ("threads", "rows", "layers", "hidden", "inner")),
        *((name, _INT) for name in ("queries", "keys", "width", "length", "codes")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, _POINTER) for name in ("norm", "head", "head_bias", "first", "scratch")),
    ]


def check_compilable(lm: PreTrainedModel) -> None:
    """Raises a ValueError unless the kernel computes what the model's own forward pass does, as the model is now."""
    if told := _obstacle(lm):
        raise ValueError(
            f"decoding of model_type ({lm.config.model_type}) can not be compiled: {told}; decode without "
            "compile_decoding."
        )


def compilable(lm: PreTrainedModel, attention_mask: Tensor) -> bool:
    """Whether the kernel is to decode rows with such prompts, (B, T) bool, of the model as it is now."""
    few = len(attention_mask) <= MOST_ROWS and not torch.is_autocast_enabled("cpu")
    return few and _obstacle(lm) is None and _left_padded(attention_mask)


def _left_padded(attention_mask: Tensor) -> bool:
    """Whether nothing is hidden after the first position that is seen, which every row has."""
    mask = attention_mask.bool()
    return bool((mask[:, 1:] >= mask[:, :-1]).all() and mask[:, -1].all())


def _obstacle(lm: PreTrainedModel) -> str | None:
    """What the kernel can not do about a model, or None."""
    weight = head_of(lm).weight
    if not fits(lm):
        return (
            "it is not Llama, Qwen2 or Qwen3 as transformers has them, with full attention, rotations that do not "
            "depend on the length, one dtype, no hooks, and an attention setting other than 'eager'"
        )
    config, decoder = lm.config, lm.get_decoder()
    if FORMS[type(decoder)].mlp[0] != "mlp" or any(type(one.mlp.act_fn) not in _SILU for one in decoder.layers):
        return "the kernel knows Llama's layers with SiLU alone"
    if weight.device.type != "cpu" or weight.dtype not in _NAMES:
        return f"its weights are {weight.dtype} on {weight.device}, not float32 or bfloat16 on a CPU"
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "head_dim": head_width(config),
    }
    mlp = (config.hidden_size, config.intermediate_size)
    if any(layer.mlp.down_proj.weight.shape != mlp for layer in decoder.layers):
        return f"a perceptron's weights have other sizes than {mlp}, which its config tells"
    odd = {name: size for name, size in sizes.items() if size % _LANES}
    return f"{odd} are no multiples of {_LANES}" if odd else None


class CompiledStep(Step):
    """One token a row through a decoder that is `compilable`, all of it in one call.

    Args:
        lm: the model.
        start: the prompts that it has read, padded at the left.
        num_tokens: tokens to come, N.
        codes: range of the image ids.
        keep_layers: whether the states of all layers are given.

    Raises:
        ValueError: if the kernel can not be compiled.
    """

    def __init__(
        self, lm: PreTrainedModel, start: Start, num_tokens: int, codes: tuple[int, int], *, keep_layers: bool
    ) -> None:
        decoder: Any = lm.get_decoder()
        config, kernel, attention_mask = lm.config, library(), start.attention_mask.bool()
        self._embeddings = decoder.embed_tokens.weight.detach()
        self._dtype = self._embeddings.dtype
        self._advance = getattr(kernel, f"advance_{_NAMES[self._dtype]}")
        self._advance.argtypes = [_POINTER] * 4 + [_INT] + [_POINTER] * 2
        self._scores = getattr(kernel, f"scores_{_NAMES[self._dtype]}")
        self._scores.argtypes = [_POINTER] * 3
        self._held: list[Any] = []  # what the kernel points to
        self._keep_layers = keep_layers
        self._at, self._now = attention_mask.shape[1], 0
        positions = start.position + 1 + torch.arange(num_tokens, device=attention_mask.device)
        cos, sin = decoder.rotary_emb(self._embeddings[:1, None], positions)
        self._turns = [one.to(self._dtype).float().transpose(0, 1).contiguous() for one in (cos, sin)]
        pairs = zip(decoder.layers, start.cache.layers, strict=True)
        layers = [self._layer(layer, stored, num_tokens) for layer, stored in pairs]
        rows, inner, queries = len(attention_mask), config.intermediate_size, config.num_attention_heads
        keys, width = config.num_key_value_heads, head_width(config)
        head = head_of(lm)
        self._num_codes = codes[1] - codes[0]
        self._decoder = _Decoder(
            threads=torch.get_num_threads(),
            rows=rows,
            layers=len(layers),
            hidden=config.hidden_size,
            inner=inner,
            queries=queries,
            keys=keys,
            width=width,
            length=self._at + num_tokens,
            codes=self._num_codes,
            eps=config.rms_norm_eps,
            layer=(_Layer * len(layers))(*layers),
            norm=self._hold(decoder.norm.weight),
            head=self._hold(head.weight[slice(*codes)]),
            head_bias=None if head.bias is None else self._hold(head.bias[slice(*codes)]),
            first=self._hold((~attention_mask).sum(1)),
            scratch=self._hold(self._embeddings.new_empty(rows, 2 * (queries + keys) * width + 2 * inner)),
        )

    def _hold(self, numbers: Tensor | None) -> int | None:
        """Address of numbers that stay as long as the step."""
        if numbers is None:
            return None
        self._held.append(numbers.detach().contiguous())
        return int(self._held[-1].data_ptr())

    def _layer(self, layer: Any, stored: Any, num_tokens: int) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(stored, DynamicLayer) and stored.keys is not None and stored.values is not None
        rows, keys, length, width = stored.keys.shape
        if length != self._at:
            raise ValueError(f"the cache holds {length} positions, but the prompts have {self._at}.")
        cache = self._embeddings.new_zeros(rows, 2, keys, length + num_tokens, width)
        cache[:, :, :, :length] = torch.stack([stored.keys, stored.values], dim=1)
        pointers: dict[str, int | None] = {"cache": self._hold(cache)}
        several = {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "out": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        for name, linears in several.items():
            weight, bias = stacked([one.weight for one in linears], [one.bias for one in linears], self._dtype)
            pointers |= {name: self._hold(weight), f"{name}_bias": self._hold(bias)}
        for name, norm in (
            ("before_mixer", layer.input_layernorm),
            ("before_mlp", layer.post_attention_layernorm),
            ("query_norm", getattr(attention, "q_norm", None)),
            ("key_norm", getattr(attention, "k_norm", None)),
        ):
            pointers[name] = None if norm is None else self._hold(norm.weight)
        return _Layer(**pointers)

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> tuple[Tensor, States | None]:
        """Reads the next token of every row."""
        if len(ids) != self._decoder.rows or self._now == len(self._turns[0]):
            raise ValueError(
                f"ids holds {len(ids)} rows for token {self._now}; the step was made for {self._decoder.rows} rows and "
                f"{len(self._turns[0])} tokens."
            )
        x = self._embeddings[ids]
        last, embedded = torch.empty_like(x), x.clone()
        states = x.new_empty((self._decoder.layers if self._keep_layers else 0, *x.shape))
        cos, sin = (turns[self._now].data_ptr() for turns in self._turns)
        kept = states.data_ptr() if self._keep_layers else None
        at = self._at + self._now
        self._advance(ctypes.addressof(self._decoder), x.data_ptr(), cos, sin, at, kept, last.data_ptr())
        self._now += 1
        every = tuple(one[:, None] for one in (embedded, *states[:-1], last)) if self._keep_layers else None
        return last, every

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Products over the image ids."""
        if hidden.shape != (self._decoder.rows, self._decoder.hidden) or hidden.dtype != self._dtype:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)} and {hidden.dtype}; the step was made for "
                f"({self._decoder.rows}, {self._decoder.hidden}) and {self._dtype}."
            )
        hidden, products = hidden.contiguous(), hidden.new_empty(len(hidden), self._num_codes)
        self._scores(ctypes.addressof(self._decoder), hidden.data_ptr(), products.data_ptr())
        return products
