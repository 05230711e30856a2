"""A small plain diffusion transformer with cross-attention."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip3o.attention import AttentionSetting, check_attention
from blip3o.diffusion.attention import TorchAttention
from blip3o.diffusion.base import Denoiser
from blip3o.diffusion.condition_grid import ConditionGrid
from blip3o.diffusion.sinusoids import sincos_2d, sinusoids
from blip3o.recomputing import recomputed
from blip3o.structures import Conditioning


class DiT(TorchAttention, Denoiser):
    """Self-attention over the latents, cross-attention to the condition, adaptive norms from the noise level.

    Blocks share one modulation network and add their own offsets to it (adaLN-single of PixArt-alpha, arXiv
    2310.00426). Latent positions carry 2-D sinusoids.

    Args:
        latent_channels: channels of the latents.
        latent_size: side of the latent grid, or its rows and columns: twice as many columns as rows for a head whose
            reference latents lie beside the noisy ones. It then also takes the noisy ones alone.
        cond_dim: width of the condition.
        width: channels of the blocks.
        depth: blocks.
        num_heads: attention heads; must divide `width`.
        mlp_ratio: hidden width of the perceptrons over `width`.
        patch_size: latent positions along each side that share a token.
        cond_grid: side of the grid that the condition's `cond_grid**2` positions form, perhaps after one of the scale
            token; they then carry the 2-D sinusoids that the latents have at their centres. Latents of reference images
            that follow them carry their own, those of squares as high as the grid. None where the condition is no
            grid.
        attention: kernel of the attention: `auto`, `flash`, `sdpa` or `eager`; see `blip3o.diffusion.attention`.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        latent_size: int | tuple[int, int],
        cond_dim: int = 192,
        width: int = 192,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        patch_size: int = 1,
        cond_grid: int | None = None,
        attention: AttentionSetting = "auto",
    ) -> None:
        super().__init__()
        self.attention = check_attention(attention)
        if width % num_heads or width % 4:
            raise ValueError(f"width ({width}) must be a multiple of 4 and of num_heads ({num_heads}).")
        rows, columns = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
        if rows % patch_size or columns % patch_size:
            raise ValueError(f"patch_size ({patch_size}) must divide latent_size ({latent_size}).")
        self._latent_channels = latent_channels
        self.latent_shape = (latent_channels, rows, columns)
        self._cond_dim = cond_dim
        self._head_size = width // num_heads
        self.patch_size = patch_size
        self.embed_in = nn.Linear(latent_channels * patch_size**2, width)
        self.embed_cond = nn.Linear(cond_dim, width)
        self.embed_sigma = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.embed_out = nn.Linear(width, latent_channels * patch_size**2)
        self.latent_positions: Tensor
        places = sincos_2d(rows // patch_size, columns // patch_size, width)
        self.register_buffer("latent_positions", places, persistent=False)
        self.condition_grid = None
        if cond_grid is not None:
            self.condition_grid = ConditionGrid(cond_grid, width, latent_side=rows // patch_size, reference_side=rows)
        for layer in (self.modulation[1], self.modulation_out, self.embed_out):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self._latent_channels

    @property
    def cond_dim(self) -> int:
        """Width of the condition."""
        return self._cond_dim

    @property
    def head_sizes(self) -> Set[int]:
        """Width of the heads."""
        return {self._head_size}

    @property
    def cached_blocks(self) -> Sequence[nn.Module]:
        """All of them."""
        return list(self.blocks)

    def check_latents(self, channels: int, height: int, width: int) -> None:
        """Raises a ValueError where the latents are of other sides than it was built for."""
        super().check_latents(channels, height, width)
        if (height, width) != self.latent_shape[1:]:
            rows, columns = self.latent_shape[1:]
            raise ValueError(
                f"latent_size ({rows} x {columns}) is not that of {height} x {width} latents; set it to "
                f"{height if height == width else [height, width]}."
            )

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where the condition is not the grid, with or without the scale token before it."""
        if self.condition_grid is not None:
            self.condition_grid.check(num_positions, grid)

    def enable_gradient_checkpointing(self) -> None:
        """Every block's activations are computed again."""
        self.gradient_checkpointing = True

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicts (B, c, h, w) from noisy latents, noise levels (B,) and a condition.

        Raises:
            ValueError: if the latents are of another size than the DiT was built for, or the condition is too short.
        """
        p, height = self.patch_size, latents.shape[2]
        places = self._places(latents)
        x = self.embed_in(rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)) + places
        cond = self.embed_cond(conditioning.embeds)
        if self.condition_grid is not None:
            cond = cond + self.condition_grid(conditioning)
        mask = None if conditioning.mask is None else conditioning.mask[:, None, None, :]
        time = self.embed_sigma(sinusoids(sigma * 1000, x.shape[-1]).to(self.modulation_out.weight.dtype))
        modulation = rearrange(self.modulation(time), "b (six d) -> six b 1 d", six=6)
        keeps = not (self.gradient_checkpointing and torch.is_grad_enabled())
        with self.attention_context(mask):
            for block in self.blocks:
                x = block(x, cond, mask, modulation) if keeps else recomputed(block, x, cond, mask, modulation)
        shift, scale = self.modulation_out(F.silu(time))[:, None].chunk(2, dim=-1)
        x = self.embed_out(self.norm_out(x) * (1 + scale) + shift)
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=height // p, p=p, q=p)

    def _places(self, latents: Tensor) -> Tensor:
        """Sinusoids (T, width) of the latents' positions: of all, or of the left half, for rows without references.

        Raises:
            ValueError: if the latents are of neither size.
        """
        channels, rows, columns = self.latent_shape
        if latents.shape[1:] == self.latent_shape:
            return self.latent_positions
        if columns == 2 * rows and latents.shape[1:] == (channels, rows, rows):
            grid = rearrange(self.latent_positions, "(h w) d -> h w d", h=rows // self.patch_size)
            return rearrange(grid[:, : rows // self.patch_size], "h w d -> (h w) d")
        raise ValueError(
            f"latents has shape {tuple(latents.shape)}; this DiT takes {('B', *self.latent_shape)}: set "
            "latent_channels and latent_size to the codec's."
        )


class DiTBlock(nn.Module):
    """Self-attention, cross-attention, perceptron; the first and last modulated by the noise level."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.self_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.self_attention = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width, eps=1e-6)
        self.cross_attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.offsets = nn.Parameter(torch.zeros(6, width))
        with torch.no_grad():
            self.offsets[2] = 1.0
            self.offsets[5] = 1.0

    def forward(self, hidden_states: Tensor, cond: Tensor, mask: Tensor | None, modulation: Tensor) -> Tensor:
        """(B, T, width) to the same shape; `modulation` is (6, B, 1, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation + self.offsets[:, None, None, :]
        y = self.self_norm(hidden_states) * (1 + scale1) + shift1
        x = hidden_states + gate1 * self.self_attention(y, y)
        x = x + self.cross_attention(self.cross_norm(x), cond, mask)
        return x + gate2 * self.mlp(self.mlp_norm(x) * (1 + scale2) + shift2)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = nn.RMSNorm(width // num_heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // num_heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries from `x` (B, T, width), keys and values from `context` (B, L, width)."""
        query = self.query_norm(rearrange(self.query(x), "b t (n d) -> b n t d", n=self.num_heads))
        key, value = rearrange(self.key_value(context), "b t (two n d) -> two b n t d", two=2, n=self.num_heads)
        out = F.scaled_dot_product_attention(query, self.key_norm(key), value, attn_mask=mask)
        return self.out(rearrange(out, "b n t d -> b t (n d)"))
