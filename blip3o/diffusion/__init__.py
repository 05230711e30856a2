"""Diffusion heads: conditions to images."""

from blip3o.diffusion.base import Codec, Denoiser, DiffusionHead
from blip3o.diffusion.codecs import DCAE, KLCodec, PixelCodec
from blip3o.diffusion.dit import DiT
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.objectives import FlowMatching
from blip3o.diffusion.sana import Sana

__all__ = [
    "DCAE",
    "Codec",
    "Denoiser",
    "DiT",
    "DiffusionHead",
    "FlowHead",
    "FlowMatching",
    "KLCodec",
    "PixelCodec",
    "Sana",
]
