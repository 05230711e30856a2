"""Edits: an instruction, the scenes it starts from, and the scene that it asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from blip3o.shapes.captions import ObjectSpec, noun
from blip3o.shapes.geometry import EXTENTS
from blip3o.shapes.instructions import EditSpec, names_color, parse_instruction
from blip3o.shapes.scenes import Background, Scene, ShapeObject, bounding_box, box_gap
from blip3o.shapes.world import World

EDIT_TAG = "edit"
"""Tag of the scenes of edits, which come from no caption."""

_MAX_PLACES = 2000


class NoRoom(ValueError):
    """There is no free place for the object that an edit makes."""


@dataclass(frozen=True)
class ShapesEdit:
    """An edit of the shapes world.

    Attributes:
        kind: One of `ALL_KINDS`.
        instruction: What is asked for.
        references: The scenes of the reference pictures; the last one is edited. Only `combine` has two.
        target: The scene that is asked for. An added object stands in one of many places that would do.
        edited: Index of the object in `source` that is recoloured, removed or replaced, else None.
    """

    kind: str
    instruction: str
    references: tuple[Scene, ...]
    target: Scene
    edited: int | None = None

    @property
    def source(self) -> Scene:
        """The scene that is edited."""
        return self.references[-1]

    @property
    def untouched(self) -> tuple[ShapeObject, ...]:
        """The objects that must stay as they are."""
        return tuple(obj for index, obj in enumerate(self.source.objects) if index != self.edited)

    @property
    def made(self) -> ShapeObject | None:
        """The object that the edit makes: recoloured, put in another's place, or added; None where it makes none."""
        if self.kind in ("recolor", "replace"):
            assert self.edited is not None, "one object is edited"
            return self.target.objects[self.edited]
        return self.target.objects[-1] if self.adds else None

    @property
    def adds(self) -> bool:
        """Whether an object is added, which may stand anywhere."""
        return self.kind in ("add", "combine")


def edit_scene(background: Background, objects: Sequence[ShapeObject]) -> Scene:
    """A scene that no caption describes: its own `caption` lists its objects."""
    listed = ", ".join(noun(obj.shape, obj.color) for obj in objects)
    return Scene(background, tuple(objects), EDIT_TAG, listed)


def apply_instruction(
    references: Scene | Sequence[Scene], instruction: str, world: World, rng: np.random.Generator
) -> ShapesEdit:
    """What an instruction asks for in a scene.

    Args:
        references: The scene to edit, or all scenes of the reference pictures, the one to edit last.
        instruction: An instruction of the world's grammar.
        world: Whose layout rules hold.
        rng: Source of an added object's size and place; it is advanced.

    Raises:
        ValueError: If the instruction can not be read, the number of references is another than it speaks of, it names
            no object of the scene or more than one, nothing would change, or (`NoRoom`) nothing can stand where it is
            to.
    """
    spec = parse_instruction(instruction, world)
    scenes = (references,) if isinstance(references, Scene) else tuple(references)
    wanted = 2 if spec.kind == "combine" else 1
    if len(scenes) != wanted:
        raise ValueError(f"references ({len(scenes)}) must be {wanted} for {instruction!r}; give as many scenes.")
    source = scenes[-1]
    objects, background, edited = list(source.objects), source.background, None
    if spec.kind == "background":
        if spec.new == background:
            raise ValueError(f"instruction ({instruction!r}) changes nothing: the background is {background}.")
        background = "black" if spec.new == "black" else "white"
    elif spec.kind == "add":
        assert spec.object is not None and spec.object.color is not None, "the grammar names both"
        objects.append(_placed(spec.object.shape, spec.object.color, source, world, rng))
    elif spec.kind == "combine":
        if len(scenes[0].objects) != 1:
            raise ValueError(
                f"instruction ({instruction!r}) is ambiguous: the first scene holds {len(scenes[0].objects)} objects; "
                "give one with a single object."
            )
        (given,) = scenes[0].objects
        objects.append(_placed(given.shape, given.color, source, world, rng))
    elif spec.kind != "reconstruct":
        edited = _named_object(source, spec)
        _change(objects, edited, spec, world)
    return ShapesEdit(spec.kind, instruction, scenes, edit_scene(background, objects), edited)


def _named_object(scene: Scene, spec: EditSpec) -> int:
    """Index of the one object that an instruction names."""
    kind = spec.object
    assert kind is not None, "the grammar names it"
    found = [i for i, obj in enumerate(scene.objects) if _is(obj, kind)]
    if len(found) == 1:
        return found[0]
    wanted = kind.shape if kind.color is None else f"{kind.color} {kind.shape}"
    told = f"instruction ({spec.instruction!r}) needs one {wanted}"
    if not found:
        raise ValueError(f"{told}, and the scene holds none; name one of: {_listed(scene)}.")
    if kind.color is None and len({scene.objects[i].color for i in found}) > 1:
        raise ValueError(f"{told}, and the scene holds {len(found)}; name its colour too: {_listed(scene)}.")
    raise ValueError(f"{told}, and the scene holds {len(found)} that are alike; name one of: {_listed(scene)}.")


def _is(obj: ShapeObject, kind: ObjectSpec) -> bool:
    return obj.shape == kind.shape and kind.color in (None, obj.color)


def _listed(scene: Scene) -> str:
    return ", ".join(f"{obj.color} {obj.shape}" for obj in scene.objects)


def _change(objects: list[ShapeObject], index: int, spec: EditSpec, world: World) -> None:
    """Removes, recolours or replaces an object of a list."""
    obj = objects[index]
    if spec.kind == "remove":
        if len(objects) == 1:
            raise ValueError(f"instruction ({spec.instruction!r}) would leave nothing; give a scene with more objects.")
        del objects[index]
        return
    assert spec.new is not None, "the grammar names it"
    if spec.new in (obj.color, obj.shape):
        raise ValueError(f"instruction ({spec.instruction!r}) changes nothing: it is a {obj.color} {obj.shape}.")
    if spec.kind == "recolor":
        objects[index] = replace(obj, color=spec.new)
        return
    objects[index] = replace(obj, shape=spec.new)
    if not _fits(objects[index], [other for i, other in enumerate(objects) if i != index], world):
        raise NoRoom(
            f"instruction ({spec.instruction!r}): a {spec.new} of that size has no room in the place of the "
            f"{obj.shape}; give another scene."
        )


def _placed(shape: str, color: str, scene: Scene, world: World, rng: np.random.Generator) -> ShapeObject:
    """An object in a free place of a scene, of a size that suits the number of objects it makes."""
    count = len(scene.objects) + 1
    if count not in world.object_counts:
        raise NoRoom(f"the scene holds {count - 1} objects, and this world's hold {world.object_counts}; give fewer.")
    low, high = world.half_extents[count]
    width, height = EXTENTS[shape]
    for draw in range(_MAX_PLACES):
        u, v, size = rng.random(3)
        h = low + (high - low) * size * 0.998**draw  # sizes shrink slowly, so that the smallest are tried too
        x = width * h + (world.canvas - 2 * width * h) * u
        y = height * h + (world.canvas - 2 * height * h) * v
        obj = ShapeObject(shape, color, float(x), float(y), float(h))
        if _fits(obj, scene.objects, world):
            return obj
    raise NoRoom(f"{noun(shape, color)} finds no free place among {_listed(scene)}; give a scene with more room.")


def _fits(obj: ShapeObject, others: Sequence[ShapeObject], world: World) -> bool:
    """Whether an object lies inside the canvas and apart from all others."""
    box = bounding_box(obj)
    inside = min(box) >= -1e-6 and max(box) <= world.canvas + 1e-6
    return inside and all(box_gap(box, bounding_box(other)) >= world.gap for other in others)


def is_held_out_edit(instruction: str, contents: Sequence[Sequence[str]]) -> bool:
    """Whether an edit is kept from training: a tenth of them, by md5.

    Where the instruction names a colour its own text decides, so that a held-out instruction is never trained on, in
    whatever scene. Elsewhere the text together with what the references hold (`contents_of`, not where) decides.

    Args:
        instruction: The instruction.
        contents: For each reference its background and its objects, in any order of the objects.
    """
    key = instruction
    if not names_color(instruction):
        key += "".join(f" | {scene[0]}: {', '.join(sorted(scene[1:]))}" for scene in contents)
    return int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


def contents_of(scene: Scene) -> tuple[str, ...]:
    """A scene's background, and its objects such as `a red circle`, without their places."""
    return (scene.background, *(noun(obj.shape, obj.color) for obj in scene.objects))


def edit_record(edit: ShapesEdit) -> dict[str, Any]:
    """An edit as plain values, ready for JSON; `read_edit` undoes it exactly."""
    return {
        "tag": edit.kind,
        "prompt": edit.instruction,
        "references": [asdict(scene) for scene in edit.references],
        "target": asdict(edit.target),
        "edited": edit.edited,
    }


def read_edit(record: Mapping[str, Any]) -> ShapesEdit:
    """The edit that `edit_record` describes.

    Raises:
        ValueError: If it describes none.
    """
    try:
        references = tuple(_scene(scene) for scene in record["references"])
        target = _scene(record["target"])
        return ShapesEdit(record["tag"], record["prompt"], references, target, record["edited"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"record ({sorted(record)}) describes no edit ({error}); pass what edit_record wrote.") from (
            error
        )


def _scene(values: Mapping[str, Any]) -> Scene:
    return Scene(**{**values, "objects": tuple(ShapeObject(**obj) for obj in values["objects"])})
