"""Quantizers: vectors to ids of a codebook, and back."""

from blip3o.tokenizers.quantizers.base import Quantizer
from blip3o.tokenizers.quantizers.ema_vq import EMAVQ
from blip3o.tokenizers.quantizers.fsq import FSQ
from blip3o.tokenizers.quantizers.lfq import LFQ
from blip3o.tokenizers.quantizers.residual import ResidualVQ
from blip3o.tokenizers.quantizers.simvq import SimVQ

__all__ = ["EMAVQ", "FSQ", "LFQ", "Quantizer", "ResidualVQ", "SimVQ"]
