"""The `blip3o` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.arguments import EDIT_SETTINGS, JUDGED, LIGHTNING, SETTINGS, add_model, add_settings, make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (the process's own when None).

    Returns:
        The exit code: 0; 2 where an argument, a file's content or a missing package is at fault; 1 where the system can
        not read or write a file, or a run of an ablation failed.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in LIGHTNING:
        return _told(args[0], lambda: _lightning(args))
    if args[:1] == ["evaluate"] and args[1:2] and args[1] in JUDGED:
        options = _judged_parser(args[1]).parse_args(args[2:])
        return _told("evaluate", lambda: _evaluate_judged(args[1], options))
    options = build_parser().parse_args(args)
    return _told(options.command, lambda: options.run(options))


def _told(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command; what it refuses is one line on stderr. JSONARGPARSE_DEBUG in the environment shows tracebacks."""
    if "JSONARGPARSE_DEBUG" in os.environ:
        return command() or 0
    try:
        return command() or 0
    except (ValueError, ImportError) as error:
        hint = " (set JSONARGPARSE_DEBUG=1 to see where)" if name in LIGHTNING else ""
        print(f"blip3o {name}: {error}{hint}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"blip3o {name}: {error}", file=sys.stderr)
        return 1


def _lightning(args: list[str]) -> None:
    from blip3o.training.cli import run

    run(args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything but Lightning's own commands, which it lists."""
    return make_parser(
        {
            "generate": _generate,
            "edit": _edit,
            "evaluate": _evaluate,
            "ablate": _ablate,
            "convert": _convert,
            "export": _export,
            "data check": _check_data,
            "data encode": _encode_data,
            "info": _info,
        }
    )


def _generate(options: argparse.Namespace) -> None:
    if options.prompts is not None:
        _generate_many(options)
        return
    if options.prompt is None:
        raise ValueError("prompt is missing; give one, or --prompts FILE with --output_dir DIR.")
    for name in ("output_dir", "batch_size"):
        if getattr(options, name) is not None:
            raise ValueError(f"{name} ({getattr(options, name)}) goes with --prompts; leave it out, or use --output.")
    options.output = options.output or Path("out.png")
    _check_drawn(options)
    _draw(options, options.prompt, SETTINGS, {})


def _generate_many(options: argparse.Namespace) -> None:
    from blip3o.bulk import generate_many, read_prompts

    for name in ("prompt", "output"):
        if getattr(options, name) is not None:
            raise ValueError(f"{name} ({getattr(options, name)}) does not go with --prompts; leave it out.")
    if options.output_dir is None:
        raise ValueError("output_dir is missing; --prompts needs a folder to write to.")
    prompts = read_prompts(options.prompts)
    made = generate_many(
        _pipeline(options),
        prompts,
        options.output_dir,
        model_name=str(options.model),
        num_images=options.num_images,
        seed=options.seed,
        batch_size=8 if options.batch_size is None else options.batch_size,
        **{name: getattr(options, name) for name in SETTINGS},
    )
    there = len(prompts) * options.num_images - made
    print(f"{made} images made in {options.output_dir}" + (f", {there} were there" if there else ""))


def _edit(options: argparse.Namespace) -> None:
    from blip3o.data.pictures import Limits, Unreadable, read_picture
    from blip3o.reference_images import MAX_PIXELS, MIN_SIZE

    inputs, named = [options.input, *options.image], options.output
    options.output = named or Path("out.png")
    _check_drawn(options, inputs, named)
    pictures = []
    for path in inputs:
        try:
            pictures.append(read_picture(path, Limits(MIN_SIZE, MAX_PIXELS)))
        except Unreadable as error:
            raise ValueError(f"image ({path}) {error}; give another picture.") from error
    record = {"image": [str(path) for path in inputs], "aspect": options.aspect}
    _draw(options, options.instruction, EDIT_SETTINGS, record, image=pictures, aspect=options.aspect)


def _check_drawn(options: argparse.Namespace, inputs: Sequence[Path] = (), named: Path | None = None) -> None:
    """Raises where the pictures can not be drawn or written, or would replace `inputs` whose path was not `named`."""
    from blip3o.images import check_kept, check_output, numbered

    if options.num_images < 1:
        raise ValueError(f"num_images ({options.num_images}) must be at least 1.")
    if not -(2**63) <= options.seed <= 2**63 - 1:
        raise ValueError(f"seed ({options.seed}) must lie in -2**63..2**63 - 1; choose another.")
    for path in numbered(options.output, options.num_images):
        check_output(path)
        check_kept(path, () if path == named else inputs)


def _draw(
    options: argparse.Namespace, prompt: str, names: Collection[str], record: Mapping[str, object], **given: Any
) -> None:
    """Draws and writes pictures, with the settings of `names`, `record` and what else made them."""
    from blip3o.images import numbered, save_pngs

    pipe = _pipeline(options)
    import torch

    settings = {name: getattr(options, name) for name in names}
    seeds = [options.seed + index for index in range(options.num_images)]
    output = pipe(
        prompt,
        num_images_per_prompt=options.num_images,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **given,
        **settings,
    )
    used = {name: value for name, value in pipe.defaults.updated(**settings).given().items() if name in names}
    paths = numbered(options.output, options.num_images)
    records = [{"prompt": prompt, "model": options.model, "seed": seed, **record, **used} for seed in seeds]
    save_pngs(list(zip(output.images, paths, records, strict=True)))
    for path in paths:
        print(path)


def _evaluate(options: argparse.Namespace) -> None:
    if options.benchmark == "shapes-edit":
        _evaluate_edits(options)
        return
    from blip3o.evaluation.shapes import evaluate, print_summary

    pipe = _pipeline(options)
    settings = {name: getattr(options, name) for name in EDIT_SETTINGS if getattr(options, name) is not None}
    summary = evaluate(
        pipe,
        options.output_dir,
        model_name=str(options.model),
        num_captions=options.num_captions,
        seed=options.seed,
        batch_size=options.batch_size,
        world=options.world,
        **settings,
    )
    print_summary(summary, options.output_dir)


def _evaluate_edits(options: argparse.Namespace) -> None:
    from blip3o.evaluation.shapes_edit import evaluate_edits, print_edit_summary

    summary = evaluate_edits(
        _pipeline(options),
        options.output_dir,
        model_name=str(options.model),
        num_edits=options.num_edits,
        seed=options.seed,
        batch_size=options.batch_size,
        world=options.world,
        kinds=options.edit_kinds,
        **{name: getattr(options, name) for name in EDIT_SETTINGS if getattr(options, name) is not None},
    )
    print_edit_summary(summary, options.output_dir)


def _judged_parser(benchmark: str) -> argparse.ArgumentParser:
    from blip3o.evaluation.arguments import judged_parser

    parser = judged_parser(benchmark)
    add_model(parser)
    add_settings(parser, EDIT_SETTINGS)
    return parser


def _evaluate_judged(benchmark: str, options: argparse.Namespace) -> None:
    from blip3o.evaluation.command import evaluate_judged

    settings = {name: getattr(options, name) for name in EDIT_SETTINGS if getattr(options, name) is not None}
    evaluate_judged(benchmark, options, settings, lambda: _pipeline(options))


def _ablate(options: argparse.Namespace) -> int:
    from blip3o.ablation.command import ablate

    return ablate(
        options.plan, options.output_dir, jobs=options.jobs, launcher=options.launcher, dry_run=options.dry_run
    )


def _convert(options: argparse.Namespace) -> None:
    from blip3o.checkpoints import check_model_folder, load_published

    check_model_folder(options.out)
    pipe = load_published(
        options.checkpoint, diffusion=options.diffusion, vision=options.vision, tokenizer=options.tokenizer
    )
    print(pipe.save_pretrained(options.out))


def _export(options: argparse.Namespace) -> None:
    from blip3o.checkpoints import export_published

    print(export_published(options.model, options.out))


def _check_data(options: argparse.Namespace) -> None:
    from blip3o.data.check import check_data

    check_data(options.config, options.output, options.num)


def _encode_data(options: argparse.Namespace) -> None:
    from blip3o.training.encode import encode_data

    encode_data(
        options.config,
        options.output_dir,
        num_rows=options.num_rows,
        shard_size=options.shard_size,
        dtype=options.dtype,
    )


def _info(options: argparse.Namespace) -> None:
    from blip3o.info import print_config_info, print_model_info

    if options.devices < 1:
        raise ValueError(f"devices ({options.devices}) must be at least 1.")
    if options.config is not None:
        print_config_info(options.config, options.devices)
    else:
        print_model_info(options.model, options.devices, trust_remote_code=options.trust_remote_code)


def _pipeline(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from blip3o.pipeline import Blip3oPipeline

    pipe = Blip3oPipeline.from_pretrained(
        options.model,
        device=options.device,
        attention=options.attention,
        trust_remote_code=options.trust_remote_code,
    )
    return pipe.compile_decoding() if options.compile_decoding else pipe


if __name__ == "__main__":
    sys.exit(main())
