"""The second stage of an editing benchmark: a judge scores the edited pictures; a stopped run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from blip3o.ablation.files import locked, write_json
from blip3o.data.pictures import Limits, read_picture
from blip3o.evaluation.answers import ask
from blip3o.evaluation.edits import EditBenchmark, EditItem, counts
from blip3o.evaluation.generating import check_folder, first_items, read_record
from blip3o.evaluation.judges.base import Judge, JudgeStopped
from blip3o.evaluation.judgments import Judgments, judge_folder
from blip3o.evaluation.progress import progress

MAX_UNANSWERED = 10
_ANY_SIZE = Limits(min_size=1)


def judge_edits(
    benchmark: EditBenchmark,
    output_dir: str | Path,
    judge: Judge,
    *,
    num_items: int | None = None,
    max_asks: int = 3,
) -> tuple[dict[str, Any], Path]:
    """Scores every edited picture that has no score yet, and sums up.

    Writes into a folder below `output_dir` that is the judge's own: `judge.json`, what decides the scores;
    `results.jsonl`, a line an item, appended as soon as it is judged; and `summary.json`. A rerun judges what is
    missing, what failed, and pictures that have changed since; of several lines of an item the last one counts.

    Args:
        benchmark: what was edited.
        output_dir: holds the edited pictures, made by `generate_edits` or by other means.
        judge: who scores.
        num_items: only the first so many items; all when None.
        max_asks: how often a question is asked where the answer can not be read, at least 1.

    Returns:
        The summary, and the folder.

    Raises:
        ValueError: on a value out of range, or if pictures are missing or unreadable.
        JudgeStopped: if the judge can answer nothing, or left ten items in a row unanswered; what it judged is kept.
    """
    if max_asks < 1:
        raise ValueError(f"max_asks ({max_asks}) must be at least 1.")
    root = Path(output_dir)
    check_folder(root)
    items = first_items(benchmark, num_items)
    _check_pictures(root, items)
    folder = judge_folder(root, judge)
    try:
        with locked(folder / ".lock", wait=False):
            judgments = Judgments(folder, benchmark, judge)
            todo = [item for item in items if not judgments.holds(item, _digest(root / item.output))]
            if todo:
                judge.prepare()
                judgments.begin()
                _judge_all(benchmark, root, judge, todo, max_asks, judgments)
            summary = {**_summary(benchmark, root, judge, items, judgments), "max_asks": max_asks}
            write_json(folder / "summary.json", summary)
    except BlockingIOError as error:
        raise ValueError(f"{folder} is in use by another run of this judge; wait for it.") from error
    return summary, folder


def _check_pictures(root: Path, items: list[EditItem]) -> None:
    missing = [item.output for item in items if not (root / item.output).is_file()]
    if missing:
        raise ValueError(
            f"output_dir ({root}) lacks {len(missing)} of {len(items)} edited pictures, such as {missing[0]}; generate "
            "them first."
        )


def _judge_all(
    benchmark: EditBenchmark, root: Path, judge: Judge, todo: list[EditItem], max_asks: int, judgments: Judgments
) -> None:
    """Judges items in as many threads as the judge takes; lines are written here alone, as items finish."""
    in_a_row = 0
    waiting = iter(todo)
    stopped: JudgeStopped | None = None
    with ThreadPoolExecutor(judge.max_concurrency) as pool, progress(len(todo), "judging") as advance:
        running: set[Future[tuple[dict[str, Any], bool]]] = set()
        while True:
            while stopped is None and len(running) < judge.max_concurrency and (item := next(waiting, None)):
                running.add(pool.submit(_judged, benchmark, root, judge, item, max_asks))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    row, unanswered = future.result()
                except JudgeStopped as error:  # the items that are under way are still waited for, and kept
                    stopped = stopped or error
                    continue
                judgments.add(row)
                advance()
                in_a_row = in_a_row + 1 if unanswered else 0
                if in_a_row == MAX_UNANSWERED:
                    stopped = stopped or JudgeStopped(
                        f"the judge ({judge.id}) left {in_a_row} items in a row unanswered, the last: {row['failure']}."
                    )
    if stopped is not None:
        raise JudgeStopped(
            f"{stopped} {judgments.num_judged} items are judged and kept in {judgments.path}; the same command goes on "
            "from there."
        ) from stopped


def _judged(
    benchmark: EditBenchmark, root: Path, judge: Judge, item: EditItem, max_asks: int
) -> tuple[dict[str, Any], bool]:
    """The line of an item, and whether the judge left it unanswered."""
    path = root / item.output
    digest = _digest(path)
    try:
        after = read_picture(path, _ANY_SIZE)
    except ValueError as error:
        raise ValueError(f"the edited picture {path} {error}; generate it again.") from error
    pictures = {"before": benchmark.shown(item.picture()), "after": benchmark.shown(after)}
    answers: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    version: str | None = None
    failure: str | None = None
    unanswered = False
    for question in benchmark.questions(item):
        verdict = ask(judge, question, [pictures[name] for name in question.shows], max_asks)
        answers[question.name] = verdict.answers
        version = verdict.version or version
        if verdict.scores is None:
            failure, unanswered = verdict.failure, verdict.unanswered
            break
        scores[question.name] = verdict.scores
    row = {
        "key": item.key,
        "group": item.group,
        **item.fields,
        "instruction": item.instruction,
        "image": item.output,
        "image_sha256": digest,
        "judge": judge.id,
        "judge_version": version,
        "given": scores,
        "scores": None if failure else benchmark.item_scores(scores),
        "failure": failure,
        "answers": answers,
    }
    return row, unanswered


def _summary(
    benchmark: EditBenchmark, root: Path, judge: Judge, items: list[EditItem], judgments: Judgments
) -> dict[str, Any]:
    rows = [judgments.row(item) for item in items]
    made = read_record(root) or {}
    return {
        "benchmark": benchmark.name,
        "model": made.get("model"),
        "seed": made.get("seed"),
        "prompt_rewriting": made.get("prompt_rewriting"),
        "settings": made.get("settings"),
        "judge": judge.id,
        "judge_versions": sorted({row["judge_version"] for row in rows if row["judge_version"]}),
        "judge_settings": judge.settings,
        "judge_prompts": f"blip3o's own, sha256 {benchmark.prompts_digest()}",
        "num_published_items": benchmark.num_published,
        **counts(rows),
        "failures": [{"image": row["image"], "reason": row["failure"]} for row in rows if row["failure"]],
        **benchmark.summary(rows),
    }


def print_judged(benchmark: EditBenchmark, summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the scores, what failed, and where the files are."""
    console = Console()
    for table in benchmark.tables(summary):
        console.print(table)
    lines = [f"judge: {summary['judge']} ({', '.join(summary['judge_versions']) or 'no answers'})"]
    if summary["num_failures"]:
        lines.append(f"{summary['num_failures']} items have no score and are in no mean; the same command asks again:")
        lines += [f"  {failure['image']}: {failure['reason']}" for failure in summary["failures"][:10]]
    for line in [*lines, f"written to {folder}"]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
