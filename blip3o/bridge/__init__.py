"""Bridges: hidden states to conditions."""

from blip3o.bridge.base import Bridge
from blip3o.bridge.mlp import MLPBridge

__all__ = ["Bridge", "MLPBridge"]
