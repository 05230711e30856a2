"""Between stored pixels and tensors: uint8 arrays with the channels last, floats in [-1, 1] with the channels first."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) or (B, H, W, 3) to float32 (3, H, W) or (B, 3, H, W) in [-1, 1]."""
    return rearrange(torch.from_numpy(image).float() / 127.5 - 1, "... h w c -> ... c h w")


def squeezed(image: Image.Image, side: int) -> Tensor:
    """A picture as SigLIP's image processor gives it: (3, side, side) in [-1, 1], bicubic, its proportions not kept."""
    return to_tensor(np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)))


def cropped(image: Image.Image, side: int) -> Tensor:
    """The central square of a picture: (3, side, side) in [-1, 1], bilinear."""
    return to_tensor(np.array(center_crop(resize(image.convert("RGB"), [side]), [side, side])))


def to_uint8(images: Tensor) -> np.ndarray:
    """Float (B, 3, H, W), clamped to [-1, 1], to uint8 (B, H, W, 3), rounded; undoes `to_tensor`."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "b c h w -> b h w c").cpu().numpy()
