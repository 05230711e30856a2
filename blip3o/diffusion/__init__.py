"""Diffusion heads: conditions to images."""

from blip3o.diffusion.base import Codec, Denoiser, DiffusionHead
from blip3o.diffusion.codecs import DCAE, KLCodec, PixelCodec
from blip3o.diffusion.decoder_only import TokenDecoderHead
from blip3o.diffusion.dit import DiT
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.lumina2 import Lumina2
from blip3o.diffusion.objectives import FlowMatching, Objective, VPrediction
from blip3o.diffusion.pixart import PixArt
from blip3o.diffusion.samplers import DDIM, DPMSolverMultistep, FlowMatchEuler, FlowMatchHeun, Sampler, UniPC
from blip3o.diffusion.sana import Sana
from blip3o.diffusion.sd3 import SD3
from blip3o.diffusion.sde import FlowMatchSDE

__all__ = [
    "DCAE",
    "DDIM",
    "SD3",
    "Codec",
    "DPMSolverMultistep",
    "Denoiser",
    "DiT",
    "DiffusionHead",
    "FlowHead",
    "FlowMatchEuler",
    "FlowMatchHeun",
    "FlowMatchSDE",
    "FlowMatching",
    "KLCodec",
    "Lumina2",
    "Objective",
    "PixArt",
    "PixelCodec",
    "Sampler",
    "Sana",
    "TokenDecoderHead",
    "UniPC",
    "VPrediction",
]
