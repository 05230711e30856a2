"""A tokenizer over the features of any vision backbone of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from blip3o.loading import resolve_folder
from blip3o.structures import ImageTokens
from blip3o.tokenizers.base import check_frozen
from blip3o.tokenizers.blocks import conv_stack
from blip3o.tokenizers.quantized import QuantizedTokenizer
from blip3o.tokenizers.quantizers import Quantizer


class TimmTokenizer(QuantizedTokenizer):
    """Backbone features, a linear layer, a quantizer, and a convolutional decoder to pixels or back to the features.

    Images are normalised as the backbone's weights expect. Its features are normalised at every position to zero mean
    and unit variance over the channels, so that every backbone's are of one size.

    Args:
        quantizer: snaps the projected features to codes.
        backbone: name of a timm model, with the tag of its weights where their normalisation differs
            (`vit_base_patch16_224.dino`).
        image_size: side in pixels of the square images, a multiple of the backbone's stride.
        layer: which of the backbone's feature maps, counted as timm's `out_indices`: a block of a ViT, a stage of a
            convolutional network.
        decodes_to: what is reconstructed.
        backbone_args: more arguments of `timm.create_model`.
        pretrained: weights that the backbone starts from: a safetensors file, a folder with `model.safetensors`, or a
            hub id such as `timm/vit_base_patch16_224.dino`. A saved model has them in its own file and does not name
            them again.
        trainable_backbone: train the backbone too; else it stays as it is, in evaluation mode.
        width: channels of the decoder.
        decoder_depth: blocks of the decoder.

    Raises:
        ValueError: if timm can not build the backbone, it does not fit the image size or the weights, or it would
            train towards its own features.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        backbone: str = "vit_tiny_patch16_224",
        image_size: int = 224,
        layer: int = -1,
        decodes_to: Literal["pixels", "features"] = "pixels",
        backbone_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        trainable_backbone: bool = False,
        width: int = 256,
        decoder_depth: int = 4,
    ) -> None:
        super().__init__()
        if decodes_to not in ("pixels", "features"):
            raise ValueError(f"decodes_to ({decodes_to!r}) must be 'pixels' or 'features'.")
        if trainable_backbone and decodes_to == "features":
            raise ValueError(
                "trainable_backbone with decodes_to='features' would let the backbone make its own features trivial; "
                "keep it frozen, or decode to pixels."
            )
        self.decodes_to = decodes_to
        self.trainable_backbone = trainable_backbone
        self._image_size = image_size
        self.quantizer = quantizer
        self.backbone = _build(backbone, image_size, layer, backbone_args or {}, pretrained)
        self.backbone.requires_grad_(trainable_backbone).train(trainable_backbone)
        info: Any = self.backbone.feature_info
        self.features_dim = int(info.channels()[-1])
        self.stride = int(info.reduction()[-1])
        if image_size < self.stride or image_size % self.stride:
            raise ValueError(f"image_size ({image_size}) must be a multiple of {backbone}'s stride ({self.stride}).")
        data = timm.data.resolve_data_config(model=self.backbone)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(data["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(3, 1, 1), persistent=False)
        self.project = nn.Linear(self.features_dim, quantizer.dim)
        decoded = self.features_dim if decodes_to == "features" else 3 * self.stride**2
        self.decoder = conv_stack(quantizer.dim, width, decoder_depth, decoded)

    def config(self) -> dict[str, Any]:
        """`class_path` and `init_args`, without `pretrained`: this tokenizer's own weights replace those."""
        config = super().config()
        config["init_args"]["pretrained"] = None
        return config

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but a frozen backbone."""
        super().train(mode)
        if not self.trainable_backbone:
            self.backbone.eval()
        return self

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""
        return self._image_size

    @property
    def grid_size(self) -> int:
        """Cells along each side of the feature map."""
        return self._image_size // self.stride

    @property
    def continuous_dim(self) -> int:
        """Width of the backbone's features."""
        return self.features_dim

    def continuous_features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, N, F), normalised, of images (B, 3, H, W) in [-1, 1].

        They are a cell's, repeated for each of its tokens.
        """
        return self._features(images).repeat_interleave(self.tokens_per_cell, dim=1)

    def _features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, cells, F), normalised over the channels."""
        self.check_images(images)
        grid = self.backbone(((images + 1) / 2 - self.mean) / self.std)[-1]
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        cells = rearrange(grid, "b h w f -> b (h w) f" if channels_last else "b f h w -> b (h w) f")
        return F.layer_norm(cells, cells.shape[-1:])

    def encode(self, images: Tensor, scale: int = 1) -> ImageTokens:
        """Images (B, 3, H, W) in [-1, 1] to tokens."""
        self.num_tokens(scale)
        features, ids, loss = self.quantizer.quantize(self.project(self._features(images)))
        return ImageTokens(ids=ids, features=features, grid=self.token_grid(), loss=loss)

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] or features (B, cells, F), from ids (B, N)."""
        self.check_ids(ids, self.num_tokens())
        decoded = self.decode_features(self.embed(ids))
        return decoded.clamp(-1, 1) if self.decodes_to == "pixels" else decoded

    def decode_features(self, features: Tensor) -> Tensor:
        """What `reads` gave, from features (B, N, D); not clamped, differentiable, for training."""
        grid = self.decoder(rearrange(self.cells(features), "b (h w) d -> b d h w", h=self.grid_size))
        if self.decodes_to == "features":
            return rearrange(grid, "b f h w -> b (h w) f")
        return rearrange(grid, "b (c p q) h w -> b c (h p) (w q)", p=self.stride, q=self.stride)

    def reads(self, images: Tensor) -> Tensor:
        """What is reconstructed: the images (B, 3, H, W) themselves, or the frozen backbone's features (B, cells, F).

        Raises:
            ValueError: if the features are reconstructed and a parameter of the backbone trains.
        """
        if self.decodes_to == "pixels":
            return images
        check_frozen(self.backbone, "backbone")
        with torch.no_grad():
            return self._features(images)


def _build(name: str, image_size: int, layer: int, arguments: dict[str, Any], pretrained: str | None) -> nn.Module:
    """A timm model that gives one feature map, filled from `pretrained` where that is named."""
    if not timm.is_model(name):
        raise ValueError(f"backbone ({name}) is no model of timm; see timm.list_models().")
    known: Any = timm.get_pretrained_cfg(name)
    sized = {"img_size": image_size} if known is not None and known.fixed_input_size else {}
    weights = None if pretrained is None else _read(pretrained)
    overlay: dict[str, Any] = {}
    if weights is not None:
        assert known is not None, "a model of timm that has no configuration has no weights"
        # Without its classifier on either side, timm fills a model strictly: it raises where a key is missing.
        heads = known.classifier if isinstance(known.classifier, tuple | list) else [known.classifier]
        starts = tuple(f"{head}." for head in heads if head)
        kept = {key: tensor for key, tensor in weights.items() if not (starts and key.startswith(starts))}
        overlay = {"pretrained_cfg_overlay": {"state_dict": kept, "num_classes": 0}}
    try:
        model: Any = timm.create_model(
            name,
            pretrained=weights is not None,
            features_only=True,
            out_indices=[layer],
            num_classes=0,
            **{**sized, **overlay, **arguments},
        )
    except Exception as error:
        source = "" if pretrained is None else f" and the weights in {pretrained}"
        raise ValueError(
            f"backbone ({name}) can not be built with image_size {image_size}, layer {layer}, "
            f"backbone_args {arguments}{source}: {error}"
        ) from error
    # timm keeps the overlay, and with it the tensors, on the model and on the one it wraps.
    for holder in model.modules():
        if isinstance(getattr(holder, "pretrained_cfg", None), dict):
            holder.pretrained_cfg.pop("state_dict", None)
    return model


def _read(pretrained: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, of the one in a folder, or of the one at a hub id."""
    path = Path(pretrained)
    if not path.is_file():
        path = resolve_folder(pretrained, "pretrained", "a safetensors file, ") / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"pretrained ({pretrained}) holds no model.safetensors; name the safetensors file itself.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"pretrained ({path}) is no safetensors file ({error}); convert it, or download it again."
        ) from error
