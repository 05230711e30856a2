"""What the parts around one of diffusers' models share: building it from its config, and loading it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from inspect import signature
from typing import Any, ClassVar, Self

from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from torch import Tensor

from blip3o.attention import AttentionSetting, check_attention
from blip3o.diffusion.attention import TorchAttention
from blip3o.diffusion.base import Denoiser
from blip3o.diffusion.condition_grid import ConditionGrid
from blip3o.loading import check_keys, check_loading_info
from blip3o.part import Part
from blip3o.recomputing import recomputed
from blip3o.structures import Conditioning


class FromDiffusers(Part):
    """A part around one model of diffusers, whose config is the part's argument `config`.

    Attributes:
        library: diffusers' class.
    """

    library: ClassVar[type[ModelMixin]]

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Any:
        """The model that a config describes, with new weights, or with its own where it was loaded already.

        Raises:
            ValueError: if the config holds keys that diffusers would drop without a word.
        """
        if isinstance(config, _Loaded):
            return config.model
        cls._check(config)
        return cls.library.from_config(dict(config))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        subfolder: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Self:
        """From a diffusers folder or hub id, with its weights.

        Args:
            name_or_path: a folder, or a hub id `owner/name`.
            subfolder: folder within it, such as `transformer` or `vae`.
            overrides: config keys to change that leave the weights' shapes as they are.
            arguments: the part's own, such as `cond_grid`.

        Raises:
            OSError: if there is none.
            ValueError: if its weights do not fit its config, or `overrides` holds unknown keys.
        """
        overrides = dict(overrides or {})
        cls._check(overrides, "overrides")
        model, info = cls.library.from_pretrained(
            name_or_path, subfolder=subfolder, output_loading_info=True, **overrides
        )
        check_loading_info(info, name_or_path)
        config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
        part = cls(config=_Loaded(config, model), **arguments)
        part.init_args["config"] = config
        return part

    @classmethod
    def _check(cls, config: Mapping[str, Any], argument: str = "config") -> None:
        check_keys(argument, config, signature(cls.library.__init__).parameters, cls.library.__name__)


class DiffusersDenoiser(FromDiffusers, TorchAttention, Denoiser):
    """A denoiser around one of diffusers' transformers.

    Args:
        config: arguments of diffusers' class.
        attention: kernel of the attention: `auto`, `flash`, `sdpa` or `eager`; see `blip3o.diffusion.attention`.
        cond_grid: side of the grid that the condition's `cond_grid**2` positions form, perhaps after one of the scale
            token; 2-D sinusoids are then added to it, so that attention finds a cell by its place and a new network
            learns several times as fast. None, as released, where the condition is no grid.

    Attributes:
        output_ratios: how many times the input's channels the transformer may predict.

    Raises:
        ValueError: if the config holds unknown keys, or `out_channels` is no such multiple of `in_channels`.
    """

    output_ratios: ClassVar[tuple[int, ...]] = (1,)

    def __init__(
        self, config: dict[str, Any], attention: AttentionSetting = "auto", cond_grid: int | None = None
    ) -> None:
        super().__init__()
        self.attention = check_attention(attention)
        self.transformer = self.build(config)
        # Conditions start with a root mean square of 2.3 (`blip3o.bridge`), next to which places must not be faint.
        self.condition_grid = None if cond_grid is None else ConditionGrid(cond_grid, self.cond_dim, strength=2.0)
        allowed = [ratio * self.latent_channels for ratio in self.output_ratios]
        made = self.transformer.config.out_channels or self.latent_channels
        if made not in allowed:
            raise ValueError(
                f"out_channels ({made}) must be {' or '.join(map(str, allowed))} where in_channels is "
                f"{self.latent_channels}; correct the config."
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.transformer.config.in_channels)

    @property
    def head_sizes(self) -> Set[int]:
        """Widths of the heads, those of SANA's linear attention left out, which knows no kernels."""
        layers = (layer for layer in self.transformer.modules() if isinstance(layer, Attention))
        return {
            layer.inner_dim // layer.heads
            for layer in layers
            if not isinstance(layer.processor, SanaLinearAttnProcessor2_0)
        }

    def run(self, mask: Tensor | None, **inputs: Any) -> Tensor:
        """What the transformer predicts of its own `inputs`, with the kernel that the setting and `mask` allow."""
        with self.attention_context(mask):
            return self.transformer(**inputs, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        """Turns on diffusers' own."""
        self.transformer.enable_gradient_checkpointing(recomputed)

    def placed(self, conditioning: Conditioning) -> Tensor:
        """The condition's embeddings (B, L, C), told of their places where they are a grid."""
        if self.condition_grid is None:
            return conditioning.embeds
        return conditioning.embeds + self.condition_grid(conditioning).to(conditioning.embeds.dtype)

    def check_condition(self, num_positions: int | None, grid: tuple[int, int] | None = None) -> None:
        """Raises a ValueError where the condition is not the grid of `cond_grid`."""
        if self.condition_grid is not None:
            self.condition_grid.check(num_positions, grid)

    def check_latents(self, channels: int, height: int, width: int) -> None:
        """Raises a ValueError where the channels are others, or the patches do not tile the latents."""
        super().check_latents(channels, height, width)
        patch = int(self.transformer.config.patch_size)
        if height % patch or width % patch:
            raise ValueError(
                f"patch_size ({patch}) must divide {height} x {width} latents; change the image size, or patch_size in "
                "`config`."
            )


class _Loaded(dict[str, Any]):
    """The config of a model that exists already, so that loading does not build its weights a second time."""

    def __init__(self, config: Mapping[str, Any], model: ModelMixin) -> None:
        super().__init__(config)
        self.model = model
