"""Many prompts to many pictures: a run that may be stopped at any time and goes on where it was."""

from __future__ import annotations

from blip3o.bulk.generate import generate_many
from blip3o.bulk.prompts import Prompt, read_prompts

__all__ = ["Prompt", "generate_many", "read_prompts"]
