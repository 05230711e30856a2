"""What a judge is asked about an edit of GEdit-Bench, after VIEScore's criteria and in our own words."""

from __future__ import annotations

_FORM = """Answer with one JSON object and nothing else:
{"reasoning": "what speaks for the numbers, in at most 30 words","""


def semantics_prompt(instruction: str) -> str:
    """Semantic consistency: whether the edit did what it was told, and no more. Two pictures, two scores."""
    return f"""You grade the work of a picture editor. The first picture is the original, the second the edited one.
The editor was told (in English or in Chinese):

{instruction}

Give two whole numbers from 0 to 10:
1. Success. 10 where the second picture shows all that was asked for, in every detail; 5 where about half of it can be
   seen; 0 where nothing of it can, or where the picture has not changed.
2. Restraint. 10 where everything that the instruction leaves alone is just as it was in the first picture; 5 where the
   scene is the same but much of it has changed without need; 0 where it is another picture altogether.

{_FORM} "scores": [success, restraint]}}"""


def quality_prompt() -> str:
    """Perceptual quality: whether the edited picture looks real and whole. One picture, two scores."""
    return f"""You grade how good a picture looks, which a computer made or changed. What it shows does not matter.

Give two whole numbers from 0 to 10:
1. Naturalness. 10 where light, shadows, distances and proportions are as in the world, or all of one style; 5 where
   something about them is plainly odd; 0 where the scene could not exist and does not hold together.
2. Cleanness. 10 where nothing is distorted, smeared, blurred, seamed or marked, and no limb, face or letter is broken;
   5 where such flaws are seen at once; 0 where they cover the picture.

{_FORM} "scores": [naturalness, cleanness]}}"""
