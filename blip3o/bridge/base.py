"""The contract of the bridge family."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from blip3o.bridge.layers import LayerMix, sinusoids
from blip3o.part import Part
from blip3o.structures import ARStates, Conditioning

Reads = Literal["image_tokens", "queries", "prompt", "token_embeds"]


class Bridge(Part):
    """Turns what the AR model knows into what the diffusion head is conditioned on.

    Subclasses take `in_features` and `out_features` first; a model calls them with the AR model's hidden size (or the
    image tokenizer's feature width, for `token_embeds`) and the head's condition width, so that neither is stated
    twice. What a bridge reads is apart from how it transforms it, so any bridge may offer all of these:

    - `image_tokens`: hidden states at the scale token and the image tokens (BLIP3o-NEXT, arXiv 2510.15857);
    - `queries`: hidden states at learned queries that follow the prompt in one pass (MetaQuery, arXiv 2504.06256); no
      image token is decoded;
    - `prompt`: hidden states at the prompt; no image token is decoded;
    - `token_embeds`: the tokenizer's features of the image tokens, and no hidden state.

    Args:
        in_features: width of the states.
        out_features: width of the condition.
        reads: what it needs.
        num_queries: number of learned queries, where it reads those; MetaQuery has 64 to 256.
        ar_layers: layers of the AR model whose states it mixes in place of the last ones: 0 the input embeddings, i
            those after layer i, negative ones from the end.

    Attributes:
        queries: (num_queries, in_features) input embeddings for the AR model, or None.
        ar_layers: the layers it asks for, empty for the last hidden states.

    Raises:
        ValueError: if `reads` is unknown, or `num_queries` or `ar_layers` do not go with it.
    """

    queries: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        reads: Reads = "image_tokens",
        num_queries: int | None = None,
        ar_layers: list[int] | None = None,
    ) -> None:
        super().__init__()
        if reads not in get_args(Reads):
            raise ValueError(f"reads ({reads!r}) must be one of {get_args(Reads)}.")
        if reads == "queries" and (num_queries is None or num_queries < 1):
            raise ValueError(f"num_queries ({num_queries}) must be at least 1 where reads is 'queries'; try 64.")
        if reads != "queries" and num_queries is not None:
            raise ValueError(f"num_queries ({num_queries}) needs reads='queries', not {reads!r}; leave it out.")
        if reads == "token_embeds" and ar_layers:
            raise ValueError(
                f"ar_layers ({ar_layers}) are of hidden states, which 'token_embeds' has none of; omit it."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.reads: Reads = reads
        self.num_queries = num_queries
        self.ar_layers = tuple(ar_layers or ())
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, in_features)) if num_queries else None
        self.layer_mix = LayerMix(len(self.ar_layers)) if self.ar_layers else None

    @property
    def needs_tokens(self) -> bool:
        """Whether image tokens have to be decoded for it."""
        return self.reads in ("image_tokens", "token_embeds")

    def num_positions(self, num_states: int | None) -> int | None:
        """Condition positions that it makes of that many states; None where the number varies with the prompt."""
        return num_states

    @abstractmethod
    def forward(self, states: ARStates) -> Conditioning:
        """States with hidden (B, L, in_features) to embeds (B, L', out_features) and their mask (B, L')."""

    def fused(self, states: ARStates) -> Tensor:
        """What it transforms, (B, L, in_features): the last hidden states, or the mix of the layers it asks for.

        It is in the bridge's own precision.

        Raises:
            ValueError: if it mixes layers and the states hold none.
        """
        if self.layer_mix is None:
            return self.in_own_dtype(states.hidden)
        if states.layers is None:
            raise ValueError(f"states.layers (None) must hold the layers {self.ar_layers} that this bridge mixes.")
        return self.layer_mix(self.in_own_dtype(states.layers))

    def placed(self, x: Tensor) -> Tensor:
        """`x` (B, L, width), with sinusoids of its positions where it reads token features, which carry no place."""
        return x + sinusoids(x.shape[1], x.shape[2], x) if self.reads == "token_embeds" else x
