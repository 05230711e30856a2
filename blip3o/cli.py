"""The `blip3o` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.bench.arguments import add_bench
from blip3o.reward_server import add_reward_server

LIGHTNING = {
    "fit": "train the module and data of a YAML file",
    "validate": "run its validation",
    "test": "run its test loop",
    "predict": "run its predictions",
}
JUDGED = ("imgedit", "gedit")
"""Benchmarks scored by a judge; `blip3o evaluate` has a parser of its own for them."""


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
    parser = argparse.ArgumentParser(prog="blip3o", description="Autoregressive plus diffusion image generation.")
    parser.add_argument("--version", action="version", version=f"blip3o {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in LIGHTNING.items():
        commands.add_parser(name, help=f"{told} (LightningCLI; see `blip3o {name} --help`)", add_help=False)

    generate = commands.add_parser("generate", help="make images from a prompt")
    generate.add_argument("prompt", help="what to draw")
    generate.add_argument(
        "--output", type=Path, default=Path("out.png"), help="PNG to write; of several images, 0, 1, ... are added"
    )
    generate.add_argument("--num_images", type=int, default=1, help="images to make in one batch")
    generate.add_argument("--seed", type=int, default=0, help="any 63-bit number; image i is drawn with seed + i")
    _add_model(generate)
    _add_settings(generate)
    generate.set_defaults(run=_generate)

    edit = commands.add_parser("edit", help="change pictures as an instruction says")
    edit.add_argument("input", type=Path, metavar="IN.png", help="picture to edit, whose proportions are kept")
    edit.add_argument("instruction", help="what to change")
    edit.add_argument(
        "--image", type=Path, action="append", default=[], help="another picture to look at; may be repeated"
    )
    edit.add_argument("--output", type=Path, help="PNG to write, as for generate; an input only if named here")
    edit.add_argument("--num_images", type=int, default=1, help="edits to make in one batch")
    edit.add_argument("--seed", type=int, default=0, help="any 63-bit number; edit i is drawn with seed + i")
    edit.add_argument("--aspect", choices=["keep", "square"], default="keep", help="square: edit the central square")
    _add_model(edit)
    _add_settings(edit, EDIT_SETTINGS)
    edit.set_defaults(run=_edit)

    evaluate = commands.add_parser("evaluate", help="score a model on a benchmark")
    others = "; ".join(f"`blip3o evaluate {name} --help` tells of {name}" for name in JUDGED)
    evaluate.add_argument("benchmark", choices=["shapes", "shapes-edit"], help=f"which benchmark ({others})")
    evaluate.add_argument(
        "--output_dir", type=Path, default=Path("runs/eval"), help="folder for images, results and summary"
    )
    evaluate.add_argument(
        "--num_captions", type=int, default=600, help="of shapes: held-out captions, balanced over the tags"
    )
    evaluate.add_argument("--num_edits", type=int, default=300, help="shapes-edit: held-out edits, balanced over kinds")
    evaluate.add_argument(
        "--edit_kinds", nargs="+", metavar="KIND", help="of shapes-edit: kinds of edit (default: all)"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the captions or edits and the images, at least 0")
    evaluate.add_argument("--batch_size", type=int, default=32, help="images generated at a time")
    evaluate.add_argument("--world", default="shapes", help="world of the captions or edits")
    _add_model(evaluate)
    _add_settings(evaluate, EDIT_SETTINGS)
    evaluate.set_defaults(run=_evaluate)

    ablate = commands.add_parser("ablate", help="do all runs of a plan and report what differs")
    ablate.add_argument("plan", type=Path, help="YAML file that says what varies, from which experiment, how often")
    ablate.add_argument(
        "--output_dir", type=Path, required=True, help="folder for runs and report; an earlier call's goes on"
    )
    ablate.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    ablate.add_argument("--launcher", default="local", help="where runs execute: local, slurm or ray (default: local)")
    ablate.add_argument("--dry_run", action="store_true", help="check the plan, list its runs, train nothing")
    ablate.set_defaults(run=_ablate)

    add_reward_server(commands)

    convert = commands.add_parser("convert", help="turn a checkpoint of the released code into a model folder")
    convert.add_argument("checkpoint", help="folder or hub id in the released layout")
    convert.add_argument("out", type=Path, help="model folder to write")
    convert.add_argument("--diffusion", help="folder or hub id with transformer/, vae/ and scheduler/ configs")
    convert.add_argument("--vision", help="folder or hub id of the SigLIP config (default: the published tower)")
    convert.add_argument("--tokenizer", help="ta_tok.pth, for checkpoints without the image tokenizer's tensors")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write a model folder in the released layout")
    export.add_argument("model", help="model folder or hub id")
    export.add_argument("out", type=Path, help="new folder to write")
    export.set_defaults(run=_export)

    data = commands.add_parser("data", help="look at the data of an experiment, or encode it")
    checks = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = checks.add_parser("check", help="read rows of every source, and say what can not be used")
    check.add_argument("config", type=Path, help="YAML with a `data` section")
    check.add_argument("--output", type=Path, help="PNG of samples to write")
    check.add_argument("--num", type=int, default=200, help="rows to read of each source (default: 200)")
    check.set_defaults(run=_check_data)
    encode = checks.add_parser("encode", help="run the frozen encoders over the rows once, to train without them")
    encode.add_argument("config", type=Path, help="experiment of `blip3o fit` with a JointModule")
    encode.add_argument("--output_dir", type=Path, required=True, help="folder to write; the same call finishes one")
    encode.add_argument("--num_rows", type=int, help="training rows (default: one pass, where the data ends)")
    encode.add_argument("--shard_size", type=int, default=1000, help="rows a tar (default: 1000)")
    encode.add_argument("--dtype", default="float32", help="of stored latents: float32, bfloat16 or float16")
    encode.set_defaults(run=_encode_data)

    info = commands.add_parser("info", help="describe a model or an experiment, what they cost, and this machine")
    what = info.add_mutually_exclusive_group()
    what.add_argument("--model", default="tiny", help="bundled name, folder or hub id (default: tiny)")
    what.add_argument("--config", type=Path, help="experiment to describe instead of a model")
    info.add_argument("--devices", type=int, default=8, help="GPUs of the FSDP estimate (default: 8)")
    info.add_argument("--trust_remote_code", action="store_true", help="import classes from any package")
    info.set_defaults(run=_info)

    add_bench(commands.add_parser("bench", help="measure speed against the released procedure and the machine"))
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="bundled name, folder or hub id (default: tiny)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--trust_remote_code", action="store_true", help="import classes from any package")


def _add_settings(
    parser: argparse.ArgumentParser, names: Mapping[str, Callable[[str], float | int | str]] | None = None
) -> None:
    group = parser.add_argument_group("generation (the model's own defaults where left out)")
    for name, kind in (names or SETTINGS).items():
        group.add_argument(f"--{name}", type=kind)


SETTINGS: dict[str, Callable[[str], float | int | str]] = {
    "num_inference_steps": int,
    "guidance_scale": float,
    "token_guidance_scale": float,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "decoding": str,
    "jacobi_window": int,
}
EDIT_SETTINGS = SETTINGS | {"image_guidance_scale": float}


def _generate(options: argparse.Namespace) -> None:
    _check_drawn(options)
    _draw(options, options.prompt, SETTINGS, {})


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
    options: argparse.Namespace, prompt: str, names: Mapping[str, object], record: Mapping[str, object], **given: Any
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
    _add_model(parser)
    _add_settings(parser, EDIT_SETTINGS)
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

    return Blip3oPipeline.from_pretrained(
        options.model, device=options.device, trust_remote_code=options.trust_remote_code
    )


def _version() -> str:
    from blip3o import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(main())
