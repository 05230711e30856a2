"""The arguments of benchmarks that a judge scores. Nothing heavy is imported to print them."""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = ("all", "generate", "judge")
JUDGE_ARGUMENTS = ("model", "base_url", "api_key_env", "timeout", "retries", "max_concurrency", "device")
"""Of the judges' own arguments, those that the command takes as `--judge_...`; a YAML file may hold all."""
_TOLD = {
    "imgedit": (
        "edit the pictures of ImgEdit-Bench and have a judge score them",
        "folder with basic_edit.json and the pictures (Benchmark/singleturn of the published archive)",
    ),
    "gedit": (
        "edit the pictures of GEdit-Bench and have a judge score them",
        "folder with the parquet files as published, or with metadata.jsonl and pictures",
    ),
}


def judged_parser(benchmark: str) -> argparse.ArgumentParser:
    """The parser of `blip3o evaluate BENCHMARK`, without the arguments of the model and of generation."""
    told, folder = _TOLD[benchmark]
    parser = argparse.ArgumentParser(prog=f"blip3o evaluate {benchmark}", description=told)
    parser.add_argument("--benchmark_dir", type=Path, required=True, help=folder)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs") / benchmark, help="folder for edited pictures and scores"
    )
    parser.add_argument(
        "--stage", choices=STAGES, default="all", help="only make the pictures, or only judge those that are there"
    )
    parser.add_argument("--num_items", type=int, help="only the first so many items of the benchmark")
    if benchmark == "gedit":
        parser.add_argument("--language", choices=["all", "en", "cn"], default="all", help="of the instructions")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures, at least 0")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures edited at a time")
    _add_judge(parser)
    return parser


def _add_judge(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judge (the judge's own defaults where left out)")
    group.add_argument(
        "--judge", help="openai (any endpoint that speaks its protocol), transformers, or a YAML file with class_path"
    )
    group.add_argument("--judge_model", help="the endpoint's model, or a folder or hub id")
    group.add_argument("--judge_base_url", help="openai: address of the endpoint, with its /v1")
    group.add_argument("--judge_api_key_env", help="openai: environment variable of the key (OPENAI_API_KEY)")
    group.add_argument("--judge_timeout", type=float, help="openai: seconds that a request may take")
    group.add_argument("--judge_retries", type=int, help="openai: how often a failed request is sent again")
    group.add_argument("--judge_max_concurrency", type=int, help="openai: requests at a time")
    group.add_argument("--judge_device", help="transformers: torch device")
    group.add_argument("--max_asks", type=int, default=3, help="how often an answer that can not be read is asked for")
