"""Image tokenizers: images to discrete tokens and back."""

from blip3o.tokenizers.base import ImageTokenizer, TrainableTokenizer
from blip3o.tokenizers.conv import ConvTokenizer
from blip3o.tokenizers.quantizers import EMAVQ, FSQ, LFQ, Quantizer, ResidualVQ, SimVQ
from blip3o.tokenizers.ta_tok import TATok
from blip3o.tokenizers.timm_tokenizer import TimmTokenizer
from blip3o.tokenizers.vq_model import DiffusersVQ

__all__ = [
    "EMAVQ",
    "FSQ",
    "LFQ",
    "ConvTokenizer",
    "DiffusersVQ",
    "ImageTokenizer",
    "Quantizer",
    "ResidualVQ",
    "SimVQ",
    "TATok",
    "TimmTokenizer",
    "TrainableTokenizer",
]
