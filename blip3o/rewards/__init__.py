"""Rewards: what reinforcement learning asks of the images that a model makes."""

from blip3o.rewards.base import Reward, WeightedSum
from blip3o.rewards.compressibility import CompressibilityReward
from blip3o.rewards.processes import ProcessReward
from blip3o.rewards.remote import RemoteReward
from blip3o.rewards.shapes import ShapesReward
from blip3o.rewards.shapes_text import ShapesTextReward

__all__ = [
    "CompressibilityReward",
    "ProcessReward",
    "RemoteReward",
    "Reward",
    "ShapesReward",
    "ShapesTextReward",
    "WeightedSum",
]
