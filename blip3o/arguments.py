"""The arguments of the `blip3o` command. Nothing heavy is imported to read or print them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from blip3o.bench.arguments import add_bench
from blip3o.reward_server import add_reward_server

Run = Callable[[argparse.Namespace], int | None]
LIGHTNING = {
    "fit": "train the module and data of a YAML file",
    "validate": "run its validation",
    "test": "run its test loop",
    "predict": "run its predictions",
}
JUDGED = ("imgedit", "gedit")
"""Benchmarks scored by a judge; `blip3o evaluate` has a parser of its own for them."""


def make_parser(run: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser of everything but Lightning's own commands, which it lists.

    Args:
        run: what to call with the options, by the command's name.
    """
    parser = argparse.ArgumentParser(prog="blip3o", description="Autoregressive plus diffusion image generation.")
    parser.add_argument("--version", action="version", version=f"blip3o {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in LIGHTNING.items():
        commands.add_parser(name, help=f"{told} (LightningCLI; see `blip3o {name} --help`)", add_help=False)

    generate = commands.add_parser("generate", help="make images from a prompt, or from a file of prompts")
    generate.add_argument("prompt", nargs="?", help="what to draw")
    generate.add_argument(
        "--output", type=Path, help="PNG to write (default: out.png); of several images, 0, 1, ... are added"
    )
    generate.add_argument("--num_images", type=int, default=1, help="images of a prompt; of one prompt, in one batch")
    generate.add_argument("--seed", type=int, default=0, help="any 63-bit number; image i is drawn with seed + i")
    many = generate.add_argument_group("many prompts (the same call finishes what was stopped)")
    many.add_argument("--prompts", type=Path, help=".txt with a prompt a line, or .jsonl: prompt, and seed or name")
    many.add_argument("--output_dir", type=Path, help="folder for the images and images.jsonl, which tells of them")
    many.add_argument("--batch_size", type=int, help="images generated at a time (default: 8)")
    add_model(generate)
    add_settings(generate, SETTINGS)
    generate.set_defaults(run=run["generate"])

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
    add_model(edit, default="tiny-edit")
    add_settings(edit, EDIT_SETTINGS)
    edit.set_defaults(run=run["edit"])

    evaluate = commands.add_parser("evaluate", help="score a model on a benchmark")
    others = "; ".join(f"`blip3o evaluate {name} --help` tells of {name}" for name in JUDGED)
    evaluate.add_argument("benchmark", choices=["shapes", "shapes-edit"], help=f"which benchmark ({others})")
    evaluate.add_argument(
        "--output_dir", type=Path, default=Path("runs/eval"), help="folder for images and results (default: runs/eval)"
    )
    evaluate.add_argument(
        "--num_captions",
        type=int,
        default=600,
        help="of shapes: held-out captions, balanced over the tags (default: 600)",
    )
    evaluate.add_argument("--num_edits", type=int, default=300, help="of shapes-edit: held-out edits (default: 300)")
    evaluate.add_argument(
        "--edit_kinds", nargs="+", metavar="KIND", help="of shapes-edit: kinds of edit (default: all)"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the captions or edits and the images, at least 0")
    evaluate.add_argument("--batch_size", type=int, default=32, help="images at a time (default: 32)")
    evaluate.add_argument(
        "--world", default="shapes", help="shapes, shapes-mini, or of words text, text-mini (default: shapes)"
    )
    add_model(evaluate)
    add_settings(evaluate, EDIT_SETTINGS)
    evaluate.set_defaults(run=run["evaluate"])

    ablate = commands.add_parser("ablate", help="do all runs of a plan and report what differs")
    ablate.add_argument("plan", type=Path, help="YAML file that says what varies, from which experiment, how often")
    ablate.add_argument(
        "--output_dir", type=Path, required=True, help="folder for runs and report; an earlier call's goes on"
    )
    ablate.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    ablate.add_argument("--launcher", default="local", help="where runs execute: local, slurm or ray (default: local)")
    ablate.add_argument("--dry_run", action="store_true", help="check the plan, list its runs, train nothing")
    ablate.set_defaults(run=run["ablate"])

    add_reward_server(commands)

    convert = commands.add_parser("convert", help="turn a checkpoint of the released code into a model folder")
    convert.add_argument("checkpoint", help="folder or hub id in the released layout")
    convert.add_argument("out", type=Path, help="model folder to write")
    convert.add_argument("--diffusion", help="folder or hub id with transformer/, vae/ and scheduler/ configs")
    convert.add_argument("--vision", help="folder or hub id of the SigLIP config (default: the published tower)")
    convert.add_argument("--tokenizer", help="ta_tok.pth, for checkpoints without the image tokenizer's tensors")
    convert.set_defaults(run=run["convert"])

    export = commands.add_parser("export", help="write a model folder in the released layout")
    export.add_argument("model", help="model folder or hub id")
    export.add_argument("out", type=Path, help="new folder to write")
    export.set_defaults(run=run["export"])

    data = commands.add_parser("data", help="look at the data of an experiment, or encode it")
    checks = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = checks.add_parser("check", help="read rows of every source, and say what can not be used")
    check.add_argument("config", type=Path, help="YAML with a `data` section")
    check.add_argument("--output", type=Path, help="PNG of samples to write")
    check.add_argument("--num", type=int, default=200, help="rows to read of each source (default: 200)")
    check.set_defaults(run=run["data check"])
    encode = checks.add_parser("encode", help="run the frozen encoders over the rows once, to train without them")
    encode.add_argument("config", type=Path, help="experiment of `blip3o fit` with a JointModule")
    encode.add_argument("--output_dir", type=Path, required=True, help="folder to write; the same call finishes one")
    encode.add_argument("--num_rows", type=int, help="training rows (default: one pass, where the data ends)")
    encode.add_argument("--shard_size", type=int, default=1000, help="rows a tar (default: 1000)")
    encode.add_argument("--dtype", default="float32", help="of stored latents: float32, bfloat16 or float16")
    encode.set_defaults(run=run["data encode"])

    info = commands.add_parser("info", help="describe a model or an experiment, what they cost, and this machine")
    what = info.add_mutually_exclusive_group()
    what.add_argument("--model", default="tiny", help="bundled name, folder or hub id (default: tiny)")
    what.add_argument("--config", type=Path, help="experiment to describe instead of a model")
    info.add_argument("--devices", type=int, default=8, help="GPUs of the FSDP estimate (default: 8)")
    info.add_argument("--trust_remote_code", action="store_true", help="import classes from any package")
    info.set_defaults(run=run["info"])

    add_bench(commands.add_parser("bench", help="measure speed against the released procedure and the machine"))
    return parser


def add_model(parser: argparse.ArgumentParser, default: str = "tiny") -> None:
    """The model, and where it runs."""
    parser.add_argument("--model", default=default, help=f"bundled name, folder or hub id (default: {default})")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    attentions, told = ["auto", "flash", "sdpa", "eager"], "attention kernel of all parts (default: as stored)"
    parser.add_argument("--attention", choices=attentions, help=told)
    told = "decode image tokens by a kernel that the C++ compiler makes: faster on a CPU, up to 16 rows"
    parser.add_argument("--compile_decoding", action="store_true", help=told)
    parser.add_argument("--trust_remote_code", action="store_true", help="import classes from any package")


def add_settings(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """The settings of a generation."""
    group = parser.add_argument_group("generation (the model's own defaults where left out)")
    for name in names:
        group.add_argument(f"--{name}", **_SETTINGS[name])


_SETTINGS: dict[str, dict[str, Any]] = {
    "num_inference_steps": {"type": int, "metavar": "STEPS", "help": "denoising steps"},
    "guidance_scale": {"type": float, "metavar": "SCALE", "help": "guidance of the diffusion head; 1 is off"},
    "token_guidance_scale": {"type": float, "metavar": "SCALE", "help": "guidance of the AR model; 1 is off"},
    "temperature": {"type": float, "help": "of the image tokens; 0 takes the most likely ones"},
    "top_k": {"type": int, "help": "most likely image tokens kept; 0 keeps all"},
    "top_p": {"type": float, "help": "probability mass of the image tokens kept"},
    "guidance_interval": {
        "type": float,
        "nargs": 2,
        "metavar": ("LOW", "HIGH"),
        "help": "noise levels in 0..1 outside which guidance_scale does nothing",
    },
    "step_cache": {
        "type": float,
        "metavar": "SHARE",
        "help": "skip blocks where the first one's work differs by less from the last full step",
    },
    "decoding": {
        "metavar": "NAME",
        "help": "sequential, or jacobi: several image tokens a pass, of the same distribution",
    },
    "jacobi_window": {"type": int, "metavar": "TOKENS", "help": "image tokens that a pass of jacobi reads (16)"},
    "image_guidance_scale": {
        "type": float,
        "metavar": "SCALE",
        "help": "guidance by the reference pictures, for models whose diffusion head sees them",
    },
}
SETTINGS = tuple(name for name in _SETTINGS if name != "image_guidance_scale")
EDIT_SETTINGS = tuple(_SETTINGS)


def _version() -> str:
    from blip3o import __version__

    return __version__
