"""Stable Diffusion 3's multimodal transformer (arXiv 2403.03206), diffusers' `SD3Transformer2DModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from blip3o.attention import AttentionSetting
from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning


class SD3(DiffusersDenoiser):
    """Wraps diffusers' MMDiT; the condition takes the place of its prompt embeddings.

    The pooled prompt embedding is a linear map of the mean over the counted condition positions. It starts at zero, so
    that released weights are first asked without one. Positions that do not count are kept out of the joint attention
    (`MaskedJointAttention`), which in diffusers knows no mask.

    Args:
        config: arguments of `diffusers.SD3Transformer2DModel`.
        attention: see `DiffusersDenoiser`.
        cond_grid: see `DiffusersDenoiser`.
    """

    library = SD3Transformer2DModel

    def __init__(
        self, config: dict[str, Any], attention: AttentionSetting = "auto", cond_grid: int | None = None
    ) -> None:
        super().__init__(config, attention, cond_grid)
        self.transformer.set_attn_processor(MaskedJointAttention())
        self.pooled_proj = nn.Linear(self.cond_dim, self.transformer.config.pooled_projection_dim)
        nn.init.zeros_(self.pooled_proj.weight)
        nn.init.zeros_(self.pooled_proj.bias)

    @property
    def cond_dim(self) -> int:
        """Width of the prompt embeddings."""
        return int(self.transformer.config.joint_attention_dim)

    def check_latents(self, channels: int, height: int, width: int) -> None:
        """Raises a ValueError where there are more patches along a side than positions."""
        super().check_latents(channels, height, width)
        config = self.transformer.config
        patches = max(height, width) // config.patch_size
        if patches > config.pos_embed_max_size:
            raise ValueError(
                f"pos_embed_max_size ({config.pos_embed_max_size}) is too small for {height} x {width} latents in "
                f"patches of {config.patch_size}; set it to at least {patches} in `config`, or take smaller images."
            )

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """All but the last, which returns no condition and always runs."""
        return list(self.transformer.transformer_blocks[:-1])

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts (B, c, h, w); SD3 counts time in thousandths of the noise level."""
        embeds, mask = conditioning.embeds, conditioning.mask
        return self.run(
            mask,
            hidden_states=latents,
            encoder_hidden_states=self.placed(conditioning),
            pooled_projections=self.pooled_proj(_mean(embeds, mask)),
            timestep=sigma * 1000,
            joint_attention_kwargs=None if mask is None else {"attention_mask": mask},
        )


class MaskedJointAttention(JointAttnProcessor2_0):
    """Diffusers' joint attention of latents and condition, with a mask over the condition's positions.

    Without a mask, and in the attention among the latents alone (SD3.5), it is the parent's.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attends from latents (B, T, D) and condition (B, L, D) to latents and counted positions.

        Args:
            attn: the layers.
            hidden_states: (B, T, D) latents.
            encoder_hidden_states: (B, L, D) condition.
            attention_mask: (B, L) bool, False where a position does not count.
        """
        if attention_mask is None or encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states)
        num_latents = hidden_states.shape[1]
        query = _heads(attn, attn.to_q, attn.norm_q, hidden_states)
        key = _heads(attn, attn.to_k, attn.norm_k, hidden_states)
        value = _heads(attn, attn.to_v, None, hidden_states)
        query = torch.cat([query, _heads(attn, attn.add_q_proj, attn.norm_added_q, encoder_hidden_states)], dim=2)
        key = torch.cat([key, _heads(attn, attn.add_k_proj, attn.norm_added_k, encoder_hidden_states)], dim=2)
        value = torch.cat([value, _heads(attn, attn.add_v_proj, None, encoder_hidden_states)], dim=2)
        counted = F.pad(attention_mask, (num_latents, 0), value=True)[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=counted)
        attended = rearrange(attended, "b n t d -> b t (n d)")
        latents, condition = attended[:, :num_latents], attended[:, num_latents:]
        latents = attn.to_out[1](attn.to_out[0](latents))
        return latents, condition if attn.context_pre_only else attn.to_add_out(condition)


def _heads(attn: Attention, layer: nn.Module, norm: nn.Module | None, states: Tensor) -> Tensor:
    """States (B, T, D) through a layer and a norm of each head: (B, N, T, d)."""
    heads = rearrange(layer(states), "b t (n d) -> b n t d", n=attn.heads)
    return heads if norm is None else norm(heads)


def _mean(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B, C) over the counted positions of (B, L, C)."""
    if mask is None:
        return embeds.mean(dim=1)
    weights = mask.to(embeds.dtype)
    return torch.einsum("blc,bl->bc", embeds, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1)
