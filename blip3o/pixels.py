"""Between stored pixels and tensors: uint8 arrays with the channels last, floats in [-1, 1] with the channels first."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) or (B, H, W, 3) to float32 (3, H, W) or (B, 3, H, W) in [-1, 1]."""
    return rearrange(torch.from_numpy(image).float() / 127.5 - 1, "... h w c -> ... c h w")


def check_still(image: Image.Image, min_size: int, max_pixels: int) -> None:
    """Judges a picture by its header, before its pixels are decoded.

    Args:
        image: as it was opened.
        min_size: shortest side, in pixels.
        max_pixels: largest area, in pixels.

    Raises:
        ValueError: if it is too large, too small, animated or of several pages.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"has {width} x {height} pixels, more than max_pixels ({max_pixels})")
    if min(width, height) < min_size:
        raise ValueError(f"has {width} x {height} pixels, a side below min_size ({min_size})")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a JPEG with another view of the same moment
        raise ValueError(f"is animated or has several pages ({frames} frames)")


def as_rgb(image: Image.Image) -> Image.Image:
    """A still picture as its viewer shows it: turned as its EXIF tag says, in RGB, what is transparent over white.

    Palettes, greyscale and CMYK are converted; of 16 bits a channel the upper 8 are kept.

    Raises:
        ValueError: if the pixels are floating-point numbers, whose range no file states.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("image holds floating-point pixels (mode F); store it with 8 or 16 bits a channel.")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def squeezed(image: Image.Image, side: int) -> Tensor:
    """A picture as SigLIP's image processor gives it: (3, side, side) in [-1, 1], bicubic, its proportions not kept."""
    return to_tensor(np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)))


def cropped(image: Image.Image, side: int) -> Tensor:
    """The central square of a picture: (3, side, side) in [-1, 1], bilinear."""
    return to_tensor(np.array(center_crop(resize(image.convert("RGB"), [side]), [side, side])))


def covering(image: Image.Image, height: int, width: int) -> Tensor:
    """The centre of a picture, as large as sides of that ratio allow: (3, height, width) in [-1, 1], bilinear."""
    if height == width:
        return cropped(image, height)
    return to_tensor(np.array(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)))


def to_uint8(images: Tensor) -> np.ndarray:
    """Float (B, 3, H, W), clamped to [-1, 1], to uint8 (B, H, W, 3), rounded; undoes `to_tensor`."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "b c h w -> b h w c").cpu().numpy()
