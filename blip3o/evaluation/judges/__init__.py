"""Judges: models that look at pictures and answer with scores."""

from blip3o.evaluation.judges.base import Answer, Judge, JudgeStopped, Unanswered
from blip3o.evaluation.judges.openai_chat import OpenAIJudge
from blip3o.evaluation.judges.vision_language import TransformersJudge

__all__ = ["Answer", "Judge", "JudgeStopped", "OpenAIJudge", "TransformersJudge", "Unanswered"]
