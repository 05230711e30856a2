"""A vision-language model of transformers as an AR backbone: reference images are read by its own vision tower."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, Qwen2VLImageProcessor

from blip3o.ar.causal_lm import CausalLM
from blip3o.attention import AttentionSetting

PLACEHOLDERS = (
    ("vision_start_token_id", "<|vision_start|>"),
    ("image_token_id", "<|image_pad|>"),
    ("vision_end_token_id", "<|vision_end|>"),
)


class VisionLanguageLM(CausalLM):
    """A model of the Qwen-VL family whose vocabulary is extended by image tokens.

    A reference image stands in the prompt as the family's own `<|vision_start|>`, one `<|image_pad|>` for each of its
    positions, `<|vision_end|>`. The vision tower's features take the places of the pads, and positions there count
    rows and columns (M-RoPE). Without images it is the plain language model.

    Args:
        config: arguments of the model's transformers config: `model_type` (such as `qwen3_vl`), `text_config`,
            `vision_config`. The ids of the three tokens are the text tokenizer's unless given.
        text_tokenizer: folder or hub id of a tokenizer, or a list of words for a word-level one, with those tokens.
        attention: kernel of the attention, the vision tower's too; see `CausalLM`.
        text_size: ids below it are text; see `CausalLM`.
        image_mean: of the three channels in [0, 1], taken off before the tower.
        image_std: by which they are then divided.
        min_pixels: smaller pictures are enlarged to about that many.
        max_pixels: larger pictures are shrunk to about that many.

    Raises:
        ValueError: if the model is of another family, or the text tokenizer lacks one of the three tokens.
    """

    reads_images = True
    _auto: ClassVar[Any] = AutoModelForImageTextToText

    def __init__(
        self,
        config: dict[str, Any],
        text_tokenizer: str | list[str],
        attention: AttentionSetting | None = "auto",
        text_size: int | None = None,
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        min_pixels: int = 1,
        max_pixels: int = 1024 * 1024,
    ) -> None:
        super().__init__(config, text_tokenizer, attention, text_size)
        if not hasattr(self.lm.base_model, "get_rope_index"):
            raise ValueError(f"model_type ({config['model_type']}) must be of the Qwen-VL family, such as 'qwen3_vl'.")
        self.vision_start, self.image_pad, self.vision_end = (self._placeholder(config, *one) for one in PLACEHOLDERS)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def _placeholder(self, config: dict[str, Any], name: str, token: str) -> int:
        """Id of one of the three tokens: the config's, or else the text tokenizer's, which the config is then told."""
        index = config.get(name, self.text_tokenizer.convert_tokens_to_ids(token))
        if index is None or (name not in config and index == self.text_tokenizer.unk_token_id):
            raise ValueError(f"text_tokenizer lacks {token}, by which images are read; add it to its tokens.")
        if not 0 <= index < self.text_size:
            raise ValueError(f"config.{name} ({index}) must lie in 0..{self.text_size - 1}, among the text's ids.")
        setattr(self.lm.config, name, index)
        return int(index)

    @classmethod
    def _stored_beside(cls, name_or_path: str) -> dict[str, Any]:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
        return {
            "image_mean": tuple(processor.image_mean),
            "image_std": tuple(processor.image_std),
            "min_pixels": int(processor.size["shortest_edge"]),
            "max_pixels": int(processor.size["longest_edge"]),
        }

    @cached_property
    def image_processor(self) -> Qwen2VLImageProcessor:
        """Resizes pictures to whole patches, normalises them and cuts them into patches, as the family was trained."""
        vision = self.lm.config.vision_config
        return Qwen2VLImageProcessor(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            image_mean=self.image_mean,
            image_std=self.image_std,
            size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            do_rescale=False,
        )

    def image_ids(self, num_images: int, height: int, width: int) -> list[int]:
        """Ids that stand for the pictures of a row, with the markers around each."""
        patches = self.image_processor.get_number_of_image_patches(height, width)
        pads = [self.image_pad] * (patches // self.image_processor.merge_size**2)
        return [self.vision_start, *pads, self.vision_end] * num_images

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
    ) -> dict[str, Any]:
        """What the decoder reads, the tower's features at the pads and 3D positions where there are images."""
        inputs = super()._inputs(input_ids, attention_mask, inputs_embeds)
        if images is None:
            return inputs
        patches, grids = self._patches(images)
        pads = input_ids == self.image_pad
        given = int(grids.prod(-1).sum()) // self.image_processor.merge_size**2 // len(images)
        if len(images) != len(input_ids) or (pads.sum(1) != given).any():
            raise ValueError(
                f"images ({tuple(images.shape)}) fill {given} positions a row, but the {len(input_ids)} rows hold "
                f"{pads.sum(1).tolist()} pads; put the ids of image_ids into each row, and no other pads."
            )
        model = self.lm.base_model
        seen = model.get_image_features(patches, grids, return_dict=True)
        embeds = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        features = torch.cat(list(seen.pooler_output)).to(embeds)
        positions, _ = model.get_rope_index(input_ids, pads.int(), image_grid_thw=grids, attention_mask=attention_mask)
        read = {"inputs_embeds": embeds.masked_scatter(pads[..., None], features), "position_ids": positions}
        if deepstack := getattr(seen, "deepstack_features", None):  # added to the first layers too, from Qwen3-VL on
            read |= {"visual_pos_masks": pads, "deepstack_visual_embeds": [torch.cat(list(one)) for one in deepstack]}
        return read

    def _patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (P, 3 t p p) of pictures (B, R, 3, H, W) in [-1, 1], and their grids (B R, 3) of patches."""
        pixels = (rearrange(images, "b r c h w -> (b r) c h w").float() + 1) / 2
        processed = self.image_processor(list(pixels), return_tensors="pt")
        return processed["pixel_values"].to(images.device), processed["image_grid_thw"].to(images.device)
