"""Image tokenizers: images to discrete tokens and back."""

from blip3o.tokenizers.base import ImageTokenizer
from blip3o.tokenizers.conv import ConvTokenizer
from blip3o.tokenizers.quantizers import FSQ, Quantizer, SimVQ
from blip3o.tokenizers.ta_tok import TATok

__all__ = ["FSQ", "ConvTokenizer", "ImageTokenizer", "Quantizer", "SimVQ", "TATok"]
