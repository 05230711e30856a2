"""A procedural world of coloured shapes with GenEval's six tasks, editing pairs, and an exact verifier of both."""

from blip3o.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    captions,
    evaluation_captions,
    is_held_out,
    metadata,
    parse_caption,
)
from blip3o.shapes.edit_results import edit_panels, edit_rows, edit_summary
from blip3o.shapes.edit_sampling import edit_for_instruction, evaluation_edits, sample_edit
from blip3o.shapes.edit_verifier import EditVerdict, edited_region, verify_edits
from blip3o.shapes.edits import ShapesEdit, apply_instruction, edit_record, read_edit
from blip3o.shapes.geneval import result_rows, summary, wilson_interval
from blip3o.shapes.instructions import ALL_KINDS, EDIT_KINDS, EditSpec, edit_kinds, instructions, parse_instruction
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
    "ALL_KINDS",
    "BACKGROUNDS",
    "COLORS",
    "EDIT_KINDS",
    "RELATIONS",
    "SHAPES",
    "SHAPES_MINI",
    "SHAPE_NAMES",
    "TAGS",
    "WORLDS",
    "CaptionSpec",
    "Detection",
    "EditSpec",
    "EditVerdict",
    "ObjectSpec",
    "Observation",
    "Scene",
    "ShapeObject",
    "ShapesEdit",
    "Verdict",
    "World",
    "apply_instruction",
    "bounding_box",
    "box_gap",
    "captions",
    "detect",
    "edit_for_instruction",
    "edit_kinds",
    "edit_panels",
    "edit_record",
    "edit_rows",
    "edit_summary",
    "edited_region",
    "evaluation_captions",
    "evaluation_edits",
    "get_world",
    "holds",
    "instructions",
    "is_held_out",
    "judge",
    "metadata",
    "parse_caption",
    "parse_instruction",
    "read_edit",
    "render",
    "render_object_map",
    "result_rows",
    "sample_edit",
    "sample_scene",
    "scene_for_caption",
    "summary",
    "verify",
    "verify_edits",
    "wilson_interval",
]
