"""`python -m blip3o.demo`: runs the stages one after another and writes `index.html`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The parser of the demo's options."""
    parser = argparse.ArgumentParser(
        prog="python -m blip3o.demo",
        description="Draws, scores and trains with a small model, and writes a page that shows all of it.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for index.html and its pictures")
    parser.add_argument("--model", default="tiny", help="bundled name, folder or hub id (default: tiny)")
    parser.add_argument("--world", default="shapes", help="shapes world of the model (default: shapes)")
    parser.add_argument("--num_captions", type=int, default=60, help="captions to score (default: 60)")
    parser.add_argument("--train_steps", type=int, default=50, help="steps of training from scratch (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of captions, pictures and training (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with the options `argv` (the process's own when None).

    Returns:
        The exit code: 0, 2 for wrong usage, 1 where files can not be read or written.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    try:
        page = run(options, shlex.join([_interpreter(), "-m", "blip3o.demo", *arguments]))
    except ValueError as error:
        print(f"blip3o.demo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"blip3o.demo: {error}", file=sys.stderr)
        return 1
    print(f"\nThe page is {page}; to see it, open {page.resolve().as_uri()} in a browser.")
    return 0


def run(options: argparse.Namespace, command: str) -> Path:
    """Runs the stages and writes the page; returns its path.

    Args:
        options: of `build_parser`.
        command: the command line that made them, for the page.

    Raises:
        ValueError: if an option is out of range or the model can not be used.
    """
    root: Path = options.output_dir
    for name, least in (("num_captions", 1), ("train_steps", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"{name} ({getattr(options, name)}) must be at least {least}.")
    if root.exists() and not root.is_dir():
        raise ValueError(f"output_dir ({root}) is a file; name a folder.")
    clock = Clock()
    with clock.stage("Loading libraries and model"):
        from blip3o.demo import page, stages
        from blip3o.demo.report import Report
        from blip3o.info import describe_machine, describe_parts
        from blip3o.pipeline import Blip3oPipeline

        pipe = Blip3oPipeline.from_pretrained(options.model)
    with clock.stage("Drawing one picture for each task"):
        # A seed of its own: these pictures are not among the scored ones.
        samples = stages.showcase(pipe, root, world_name=options.world, seed=options.seed + 1)
        clock.say(f"{sum(sample.correct for sample in samples)} of {len(samples)} right")
    with clock.stage(f"Scoring {options.num_captions} captions"):
        score = stages.score(
            pipe,
            root,
            model_name=str(options.model),
            world_name=options.world,
            num_captions=options.num_captions,
            seed=options.seed,
        )
        clock.say(f"{sum(row['correct'] for row in score.rows)} of {len(score.rows)} right")
    with clock.stage(f"Training from scratch, {options.train_steps} steps"):
        training = stages.train(
            pipe.model,
            root,
            world_name=options.world,
            num_steps=options.train_steps,
            seed=options.seed,
            say=clock.say,
        )
    report = Report(
        model_name=str(options.model),
        command=command,
        defaults=pipe.defaults.given(),
        machine=describe_machine(),
        parts=describe_parts(pipe.model),
        samples=samples,
        score=score,
        training=training,
        times=clock.times,
    )
    path = root / "index.html"
    path.write_text(page.render(report), encoding="utf-8")
    return path


def _interpreter() -> str:
    """This Python as one would type it here."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class Clock:
    """Announces stages on the console and keeps the wall time of each, in seconds, in `times`."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block."""
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start
        self.say(f"{self.times[name]:.1f} s")

    def say(self, text: str) -> None:
        """Prints a line that belongs to the current stage."""
        print(f"  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
