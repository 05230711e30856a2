"""Bridges: hidden states to conditions."""

from blip3o.bridge.base import Bridge, Reads
from blip3o.bridge.idle import IdleBridge
from blip3o.bridge.mlp import MLPBridge
from blip3o.bridge.perceiver import PerceiverBridge
from blip3o.bridge.transformer import TransformerBridge

__all__ = ["Bridge", "IdleBridge", "MLPBridge", "PerceiverBridge", "Reads", "TransformerBridge"]
