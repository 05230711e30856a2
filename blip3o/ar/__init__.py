"""AR backbones: text to image tokens and hidden states."""

from blip3o.ar.base import ARBackbone, Sampling
from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.text import word_tokenizer
from blip3o.ar.vision_language import VisionLanguageLM
from blip3o.ar.vocabulary import ImageVocabulary

__all__ = ["ARBackbone", "CausalLM", "ImageVocabulary", "Sampling", "VisionLanguageLM", "word_tokenizer"]
