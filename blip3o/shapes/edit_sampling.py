"""Drawing edits: streams for training, and balanced sets for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from blip3o.shapes.captions import Split, noun
from blip3o.shapes.edits import NoRoom, ShapesEdit, apply_instruction, edit_scene, is_held_out_edit
from blip3o.shapes.geometry import EXTENTS
from blip3o.shapes.instructions import (
    ALL_KINDS,
    EditSpec,
    edit_kinds,
    instructions,
    kind_lack,
    names_color,
    parse_instruction,
    source_counts,
)
from blip3o.shapes.scenes import Background, Scene, ShapeObject, draw_layout, draw_name
from blip3o.shapes.world import World

_STREAM, _EVALUATION = 1, 2  # keep these draws apart from those of scenes and captions with the same seed
_MAX_DRAWS = 5000

Kind = tuple[str, str]
"""Shape and colour."""


def sample_edit(
    world: World,
    seed: int,
    index: int,
    *,
    split: Split = "train",
    kind: str | None = None,
    kind_weights: Mapping[str, float] | None = None,
) -> ShapesEdit:
    """Draws the edit number `index` of the stream `seed`: a pure function of its arguments.

    Args:
        world: Where the scenes come from.
        seed: Stream of edits, non-negative.
        index: Number in the stream, non-negative.
        split: Edits to draw from (`is_held_out_edit`).
        kind: The only kind to draw; by default each of `EDIT_KINDS` that the world holds is equally likely.
        kind_weights: Relative frequency of each kind of `ALL_KINDS`; one that it lacks is never drawn.

    Raises:
        ValueError: If both `kind` and `kind_weights` are given, weights are not positive, or the world can not hold a
            kind that is asked for or has no edit of it in the split.
    """
    if kind is not None and kind_weights is not None:
        raise ValueError(f"kind ({kind!r}) and kind_weights ({dict(kind_weights)}) exclude each other; drop one.")
    weights = {kind: 1.0} if kind is not None else kind_weights
    rng = np.random.default_rng([seed, index, _STREAM])
    weights = check_kinds(world, weights, split)
    forms = _forms(world, draw_name("kind_weights", weights, ALL_KINDS, rng), split)
    table = forms[int(rng.integers(len(forms)))]
    return edit_for_instruction(world, table[int(rng.integers(len(table)))], rng, split=split)


def check_kinds(world: World, weights: Mapping[str, float] | None, split: Split) -> Mapping[str, float]:
    """The weights of the kinds to draw: those given, or equal ones for all of `EDIT_KINDS` that the world holds.

    Raises:
        ValueError: If a kind is unknown, the world can not hold it, or it has no instruction in the split.
    """
    if weights is None:
        weights = dict.fromkeys(edit_kinds(world, split), 1.0)
    for kind, weight in weights.items():
        kind_lack(world, kind)  # refuses an unknown one
        if weight != 0 and not instructions(world, kind, split):
            raise ValueError(f"kind ({kind!r}) has no instruction in split {split!r} of this world; leave it out.")
    return weights


@cache
def _forms(world: World, kind: str, split: Split) -> tuple[tuple[str, ...], ...]:
    """Instructions of a kind: those that name the edited object by shape alone, and those that name its colour too."""
    by_form: dict[bool, list[str]] = {}
    for one in instructions(world, kind, split):
        named = parse_instruction(one, world).object
        by_form.setdefault(named is not None and named.color is not None, []).append(one)
    return tuple(tuple(by_form[key]) for key in sorted(by_form))


def evaluation_edits(world: World, num_edits: int, seed: int, kinds: Sequence[str] | None = None) -> list[ShapesEdit]:
    """Draws held-out edits to evaluate on, a pure function of its arguments.

    Kinds take turns, so their numbers differ by at most one. Within a kind the forms (by shape, by colour and shape)
    take turns, and within a form instructions come in random order and repeat only once all were used.

    Args:
        world: Where the scenes come from.
        num_edits: How many.
        seed: Of the choice, non-negative.
        kinds: Kinds to draw from; all of `EDIT_KINDS` that the world holds when None.

    Raises:
        ValueError: If `num_edits` is below one, a kind is repeated, or one can not be drawn.
    """
    if num_edits < 1:
        raise ValueError(f"num_edits ({num_edits}) must be at least 1; ask for more.")
    chosen = edit_kinds(world, "held_out") if kinds is None else tuple(kinds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"kinds ({list(chosen)}) must be one or more different ones out of {ALL_KINDS}.")
    check_kinds(world, dict.fromkeys(chosen, 1.0), "held_out")
    per_kind = -(-num_edits // len(chosen))
    columns = []
    for kind in chosen:
        key = [seed, ALL_KINDS.index(kind)]
        drawn = _in_turns(_forms(world, kind, "held_out"), per_kind, np.random.default_rng([*key, _EVALUATION]))
        columns.append(
            [
                edit_for_instruction(world, one, np.random.default_rng([*key, _EVALUATION, 1 + i]), split="held_out")
                for i, one in enumerate(drawn)
            ]
        )
    return [edit for turn in zip(*columns, strict=True) for edit in turn][:num_edits]


def _in_turns(forms: Sequence[Sequence[str]], count: int, rng: np.random.Generator) -> list[str]:
    queues: list[list[str]] = [[] for _ in forms]
    drawn = []
    for number in range(count):
        form, queue = forms[number % len(forms)], queues[number % len(forms)]
        if not queue:
            queue.extend(form[i] for i in rng.permutation(len(form)))
        drawn.append(queue.pop())
    return drawn


def edit_for_instruction(
    world: World, instruction: str, rng: np.random.Generator, *, split: Split = "all"
) -> ShapesEdit:
    """Draws scenes in which an instruction is clear, and what it asks for there.

    Args:
        world: Whose layout rules hold.
        instruction: An instruction of the world's grammar.
        rng: Source of the randomness; it is advanced.
        split: For an instruction without a colour, which scenes are drawn; with one, it decides itself.

    Raises:
        ValueError: If the instruction can not be read, or no scene was found.
    """
    spec = parse_instruction(instruction, world)
    by_scene = split != "all" and not names_color(instruction)
    for _ in range(_MAX_DRAWS):
        backgrounds, kinds = _draw_contents(world, spec, rng)
        contents = [(name, *(noun(*kind) for kind in held)) for name, held in zip(backgrounds, kinds, strict=True)]
        if by_scene and is_held_out_edit(instruction, contents) != (split == "held_out"):
            continue
        specs = [None] * (len(kinds) - 1) + [spec]  # the last one is edited
        scenes = [_draw_scene(world, *one, rng) for one in zip(backgrounds, kinds, specs, strict=True)]
        try:
            return apply_instruction(scenes, instruction, world, rng)
        except NoRoom:
            continue
    raise ValueError(
        f"instruction ({instruction!r}) finds no scene in split {split!r} of this world; leave its kind out."
    )


def _draw_contents(world: World, spec: EditSpec, rng: np.random.Generator) -> tuple[list[Background], list[list[Kind]]]:
    """Background and objects of every reference; an object that is named comes first, and once."""
    every = [(shape, color) for shape in world.shapes for color in world.colors]
    counts = source_counts(world, spec.kind)
    count = counts[int(rng.integers(len(counts)))]
    background: Background = "black" if rng.integers(2) else "white"
    if spec.kind == "background":
        background = "white" if spec.new == "black" else "black"
    kinds: list[Kind] = []
    others = every
    if spec.object is not None and spec.kind != "add":
        shape, color = spec.object.shape, spec.object.color
        others = [kind for kind in every if kind != (shape, color)]
        if color is None:
            others = [kind for kind in every if kind[0] != shape]
            colors = [name for name in world.colors if name != spec.new]
            color = colors[int(rng.integers(len(colors)))]
            count = count if others else 1
        kinds = [(shape, color)]
        alike = [kind for kind in others if kind[0] == shape]
        if count > 1 and alike and rng.integers(2):  # then the instruction has to name the colour
            kinds.append(alike[int(rng.integers(len(alike)))])
    while len(kinds) < count:
        kinds.append(others[int(rng.integers(len(others)))])
    if spec.kind == "combine":
        first: Background = "black" if rng.integers(2) else "white"
        return [first, background], [[every[int(rng.integers(len(every)))]], kinds]
    return [background], [kinds]


def _draw_scene(
    world: World, background: Background, kinds: Sequence[Kind], spec: EditSpec | None, rng: np.random.Generator
) -> Scene:
    """A scene, with room for the edit where it is the one that is edited."""
    extents = [EXTENTS[shape] for shape, _ in kinds]
    count = len(kinds)
    if spec is not None and spec.kind in ("add", "combine"):
        count += 1
    if spec is not None and spec.kind == "replace":
        assert spec.new is not None, "the grammar names it"
        (width, height), (other_width, other_height) = extents[0], EXTENTS[spec.new]
        extents[0] = (max(width, other_width), max(height, other_height))
    sizes_of = count if count in world.object_counts else world.object_counts[0]
    layout = draw_layout(world, extents, rng, sizes_of=sizes_of)
    objects = [ShapeObject(*kind, x, y, h) for kind, (x, y, h) in zip(kinds, layout, strict=True)]
    return edit_scene(background, [objects[i] for i in rng.permutation(len(objects))])
