"""`blip3o evaluate imgedit` and `gedit`: both stages, or one of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from blip3o.evaluation.arguments import JUDGE_ARGUMENTS
from blip3o.evaluation.edits import EditBenchmark
from blip3o.evaluation.gedit import GEdit
from blip3o.evaluation.generating import generate_edits
from blip3o.evaluation.imgedit import ImgEdit
from blip3o.evaluation.judges import Judge
from blip3o.evaluation.judges.choice import choose_judge
from blip3o.evaluation.judging import judge_edits, print_judged
from blip3o.pipeline import Blip3oPipeline


def evaluate_judged(
    name: str,
    options: argparse.Namespace,
    settings: Mapping[str, float | int | str],
    pipeline: Callable[[], Blip3oPipeline],
) -> None:
    """Runs the stages asked for.

    Args:
        name: `imgedit` or `gedit`.
        options: as `judged_parser` gives them, with `model`.
        settings: arguments of the pipeline's call.
        pipeline: loads the model; called where pictures are to be made.

    Raises:
        ValueError: on wrong arguments or files; the judge is looked at before the first picture is made.
    """
    judge = _judge(options) if options.stage != "generate" else None
    benchmark: EditBenchmark
    benchmark = ImgEdit(options.benchmark_dir) if name == "imgedit" else GEdit(options.benchmark_dir, options.language)
    if options.stage != "judge":
        made = generate_edits(
            pipeline(),
            benchmark,
            options.output_dir,
            model_name=str(options.model),
            num_items=options.num_items,
            seed=options.seed,
            batch_size=options.batch_size,
            **settings,
        )
        print(f"{made} pictures edited in {options.output_dir}")
    if judge is not None:
        summary, folder = judge_edits(
            benchmark, options.output_dir, judge, num_items=options.num_items, max_asks=options.max_asks
        )
        print_judged(benchmark, summary, folder)


def _judge(options: argparse.Namespace) -> Judge:
    if options.judge is None:
        raise ValueError("judge is missing; pass openai, transformers or a YAML file, or --stage generate.")
    if options.max_asks < 1:
        raise ValueError(f"max_asks ({options.max_asks}) must be at least 1.")
    judge = choose_judge(options.judge, {name: getattr(options, f"judge_{name}") for name in JUDGE_ARGUMENTS})
    judge.check()
    return judge
