"""Diffusion heads: conditions to images."""

from blip3o.diffusion.base import Codec, Denoiser, DiffusionHead
from blip3o.diffusion.codecs import DCAE, KLCodec, PixelCodec
from blip3o.diffusion.decoder_only import TokenDecoderHead
from blip3o.diffusion.dit import DiT
from blip3o.diffusion.flow import FlowHead
from blip3o.diffusion.objectives import FlowMatching, Objective, VPrediction
from blip3o.diffusion.samplers import DDIM, DPMSolverMultistep, FlowMatchEuler, FlowMatchHeun, Sampler, UniPC
from blip3o.diffusion.sana import Sana

__all__ = [
    "DCAE",
    "DDIM",
    "Codec",
    "DPMSolverMultistep",
    "Denoiser",
    "DiT",
    "DiffusionHead",
    "FlowHead",
    "FlowMatchEuler",
    "FlowMatchHeun",
    "FlowMatching",
    "KLCodec",
    "Objective",
    "PixelCodec",
    "Sampler",
    "Sana",
    "TokenDecoderHead",
    "UniPC",
    "VPrediction",
]
