"""What a judge is asked about an edit of ImgEdit-Bench: three criteria for each type of edit, in our own words."""

from __future__ import annotations

_KEPT = "Whatever the instruction leaves alone is as it was: objects, background, colours, sharpness and framing"
_LIGHT = "Light, shadows, reflections, perspective and contact with the surroundings make physical sense"
_SEAMS = "The edited area has no seams, smears, halos, noise or change of resolution; one could not tell where it is"

# For each type: what the edit does, and three criteria, each with what earns the best score.
_CRITERIA: dict[str, tuple[str, tuple[str, str, str]]] = {
    "add": (
        "puts something new into the picture",
        (
            "Compliance. What was asked for is there, of the right kind, number, size, place and look, and no more",
            f"Seamlessness. {_SEAMS}, and the new object has the style of the rest",
            f"Physics and detail. {_LIGHT}. {_KEPT}",
        ),
    ),
    "adjust": (
        "changes an attribute, such as the colour or the material, of something in the picture",
        (
            "Compliance. The right object, all of it and no other, has the new attribute, and its shape is unchanged",
            f"Seamlessness. {_SEAMS}, and no colour spills over an edge",
            f"Physics and detail. The new surface reacts to the light as its material would. {_LIGHT}. {_KEPT}",
        ),
    ),
    "extract": (
        "cuts an object out and shows it alone on plain white",
        (
            "Selection. Exactly the object that was asked for is shown, complete, and it is the very same one",
            "Outline and ground. The outline is exact and clean, the ground pure white, without remains or shadows of "
            "the old background",
            "Quality. The object is as sharp as it was, with its true colours, undistorted and without holes",
        ),
    ),
    "replace": (
        "puts something else in the place of an object",
        (
            "Compliance. All of the old object is gone, and the new one has the kind, number, place, size and look "
            "that was asked for",
            f"Seamlessness. {_SEAMS}, and the new object has the style of the rest",
            f"Physics and detail. {_LIGHT}. {_KEPT}",
        ),
    ),
    "remove": (
        "takes an object out of the picture",
        (
            "Compliance. Exactly what was named is gone, wholly, with nothing put in its stead",
            f"Seamlessness. {_SEAMS}",
            "Physics and detail. What fills the gap is what would be seen there, its shadows and reflections are gone "
            f"as well. {_KEPT}",
        ),
    ),
    "background": (
        "changes the background and leaves the subject in front of it",
        (
            "Compliance. The background shows what was asked for, all over, and the subject is untouched",
            "Seamlessness. Around the subject there is no halo, fringe or blur, and grain, sharpness and colours of "
            "both agree",
            "Physics. Subject and background share the direction of light, the perspective, the depth and the scale",
        ),
    ),
    "style": (
        "renders the whole picture in another style",
        (
            "Style. Colours, texture, strokes and light are those of the style asked for, all over the picture",
            "Content. Every object, its place and its proportions can be found again",
            "Rendering. The picture is clean and coherent, without noise, banding, seams or broken textures",
        ),
    ),
    "action": (
        "changes a pose, a gesture or an expression",
        (
            "Action. Pose, gesture or expression are just as asked for, in direction, side and degree",
            "Identity. It is the same person or animal: face, hair, skin or fur, clothes and belongings are unchanged",
            f"Anatomy and look. Limbs, hands and face are right in number and proportion. {_SEAMS}. {_LIGHT}",
        ),
    ),
    "compose": (
        "carries out several changes, often on several objects",
        (
            "Compliance. Each of the changes is carried out, wholly, on the right object, and nothing else is changed",
            f"Seamlessness. {_SEAMS}",
            f"Physics and detail. {_LIGHT}. {_KEPT}",
        ),
    ),
}
TYPES = tuple(_CRITERIA)
"""The nine types of edits."""


def imgedit_prompt(kind: str, instruction: str) -> str:
    """The words for an edit of a type; the picture before comes first, the picture after it second."""
    does, (first, second, third) = _CRITERIA[kind]
    return f"""You grade the work of a picture editor. The first picture is the original, the second the edited one.
This edit {does}. The editor was told:

{instruction}

Give three whole numbers from 1 to 5, one for each of these criteria. Each says what a 5 looks like. Give a 4 for flaws
that show only on close inspection, a 3 for flaws that show at once but do little harm, a 2 where the criterion is
mostly missed, and a 1 where it is missed altogether or the picture is spoiled.
1. {first}.
2. {second}.
3. {third}.
An edit that does not do what it was told earns nothing by looking good: neither the second nor the third number may be
higher than the first. If the picture has not changed at all, the first number is 1.

Answer with one JSON object and nothing else:
{{"reasoning": "what speaks for the numbers, in at most 30 words", "scores": [first, second, third]}}"""
