"""A procedural world of coloured shapes with GenEval's six tasks and an exact verifier."""

from blip3o.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    captions,
    evaluation_captions,
    is_held_out,
    metadata,
    parse_caption,
)
from blip3o.shapes.geneval import result_rows, summary, wilson_interval
from blip3o.shapes.render import render, render_object_map
from blip3o.shapes.scenes import (
    Scene,
    ShapeObject,
    bounding_box,
    box_gap,
    holds,
    sample_scene,
    scene_for_caption,
)
from blip3o.shapes.verifier import Detection, Observation, Verdict, detect, judge, verify
from blip3o.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPE_NAMES,
    SHAPES,
    SHAPES_MINI,
    TAGS,
    WORLDS,
    World,
    get_world,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "RELATIONS",
    "SHAPES",
    "SHAPES_MINI",
    "SHAPE_NAMES",
    "TAGS",
    "WORLDS",
    "CaptionSpec",
    "Detection",
    "ObjectSpec",
    "Observation",
    "Scene",
    "ShapeObject",
    "Verdict",
    "World",
    "bounding_box",
    "box_gap",
    "captions",
    "detect",
    "evaluation_captions",
    "get_world",
    "holds",
    "is_held_out",
    "judge",
    "metadata",
    "parse_caption",
    "render",
    "render_object_map",
    "result_rows",
    "sample_scene",
    "scene_for_caption",
    "summary",
    "verify",
    "wilson_interval",
]
