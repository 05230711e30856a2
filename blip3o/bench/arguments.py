"""The arguments of `blip3o bench`. Nothing heavy is imported before a measurement starts."""

from __future__ import annotations

import argparse
from pathlib import Path

SHAPES = ("nano", "tiny", "mid", "published")
SUPERVISE = ("all", "answer", "image")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Adds what can be measured to the parser of `blip3o bench`."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    generate = kinds.add_parser("generate", help="prompt to pixels, against the released procedure")
    _add_model(generate)
    generate.add_argument("--batch_size", type=int, default=1, help="images at a time (default: 1)")
    generate.add_argument("--num_inference_steps", type=int, help="denoising steps (default: the shape's)")
    generate.add_argument(
        "--compile_decoding", action="store_true", help="our image tokens are decoded by the compiled kernel"
    )
    generate.add_argument("--num_tokens", type=int, help="image tokens, a square number (default: the shape's)")
    train = kinds.add_parser("train", help="joint training, against logits over the full vocabulary everywhere")
    _add_model(train)
    train.add_argument("--batch_size", type=int, default=2, help="rows a step (default: 2)")
    train.add_argument(
        "--supervise", choices=SUPERVISE, default="image", help="tokens that both sides train on (default: image)"
    )
    train.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="all sides compute activations again in the backward pass",
    )
    data = kinds.add_parser("data", help="rows a second of an experiment's data")
    data.add_argument("--config", type=Path, required=True, help="YAML with a `data` section")
    data.add_argument("--batches", type=int, default=20, help="batches of every repeat (default: 20)")
    startup = kinds.add_parser("startup", help="how long commands take to start")
    for one in (generate, train, data, startup):
        one.add_argument("--repeats", type=int, default=5, help="timed repeats after one for warming up (default: 5)")
        one.add_argument("--output", type=Path, help="JSON file to write")
    parser.set_defaults(run=run_bench)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="mid",
        help="nano (to try the command), tiny (the bundled model), mid, or published (3B); default: mid",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="precision of the timing")


def run_bench(options: argparse.Namespace) -> None:
    """Measures what `options.what` names, prints it and writes `options.output`.

    Raises:
        ValueError: on a number out of range, or where the two sides' outputs differ.
    """
    for name in ("repeats", "batch_size", "batches", "num_inference_steps", "num_tokens"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")
    from blip3o.bench.report import check_writable, print_report, write_report

    if options.output is not None:
        check_writable(options.output)
    if options.what == "generate":
        from blip3o.bench.generate import bench_generate

        report = bench_generate(
            options.shape,
            batch_size=options.batch_size,
            repeats=options.repeats,
            num_inference_steps=options.num_inference_steps,
            num_tokens=options.num_tokens,
            compile_decoding=options.compile_decoding,
            device=options.device,
            dtype=options.dtype,
        )
    elif options.what == "train":
        from blip3o.bench.train import bench_train

        report = bench_train(
            options.shape,
            batch_size=options.batch_size,
            repeats=options.repeats,
            supervise=options.supervise,
            gradient_checkpointing=options.gradient_checkpointing,
            device=options.device,
            dtype=options.dtype,
        )
    elif options.what == "data":
        from blip3o.bench.data import bench_data

        report = bench_data(options.config, batches=options.batches, repeats=options.repeats)
    else:
        from blip3o.bench.startup import bench_startup

        report = bench_startup(repeats=options.repeats)
    print_report(report)
    if options.output is not None:
        write_report(report, options.output)
        print(options.output)
