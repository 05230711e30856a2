"""`report.html`, `report.md` and `results.csv`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from blip3o import __version__
from blip3o.ablation import words
from blip3o.ablation.compare import Comparison, Results, compare, diverged, gather, primary_score
from blip3o.ablation.files import read_json, write_text
from blip3o.ablation.plan import Plan
from blip3o.ablation.plots import draw_plots, label
from blip3o.ablation.runner import Task
from blip3o.ablation.runs import FAILURE
from blip3o.ablation.tables import write_results

CAPTIONS = {
    "quality": "Quality: a bar for the mean over seeds, a band for its interval, a dot for each seed; the shade is the "
    "margin around the reference. Bands that leave the picture are wider than it.",
    "curves": "Learning curves, against steps and against training time (validation left out): seeds thin, their mean "
    "thick.",
    "frontiers": "Quality against cost. The line joins the variants that none beats in both.",
}


def write_report(plan: Plan, tasks: Sequence[Task], root: Path, command: str) -> list[Comparison]:
    """Writes the three files, `results.csv` first, and `plots/`; returns the comparisons.

    A run whose primary score is no finite number becomes a failed one: it diverged, and no mean, test or plot holds it.

    Args:
        plan: the plan.
        tasks: its runs, done or failed.
        root: the ablation's folder.
        command: the command line that makes it again.

    Raises:
        ValueError: if the runs lack the plan's primary score.
    """
    write_results(plan, tasks, root / "results.csv")
    done = []
    for task in tasks:
        result = task.result()
        if result is None:
            continue
        done.append((task.run, result))
        if diverged(plan, result):
            task.state = "failed"
    results = gather(plan, done)
    comparisons = compare(plan, results)
    plots = draw_plots(plan, results, root / "plots")
    write_text(root / "report.md", _markdown(plan, tasks, results, comparisons, plots, command))
    write_text(root / "report.html", _html(plan, tasks, results, comparisons, plots, command, root))
    return comparisons


def surroundings(results: Results) -> list[str]:
    """Machine, versions and state of the code, and whether runs differ in them."""
    runs = [result for own in results.values() for result in own.values()]
    told = []
    for name in ("machine", "accelerator", "threads", "jobs", "git"):
        found = list(dict.fromkeys(str(result.get(name)) for result in runs))
        told.append(f"{name}: {', '.join(found)}" + (" (runs differ)" if len(found) > 1 else ""))
    versions = dict.fromkeys(f"{name} {version}" for result in runs for name, version in result["versions"].items())
    return [*told, "versions: " + ", ".join(versions)] if runs else []


def _failures(plan: Plan, tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """Name and log of every failed run; of one that diverged its score."""
    found = []
    for task in tasks:
        if task.state == "failed":
            if (result := task.result()) is not None and diverged(plan, result):
                score = primary_score(plan, result)
                told = f"{plan.primary} is {score} after {result['steps']} steps."
                found.append((f"{task.run.id} (diverged)", told))
                continue
            failure = read_json(task.folder / FAILURE) or {"exit_code": "unknown", "log": ""}
            found.append((f"{task.run.id} (exit code {failure['exit_code']})", failure["log"]))
    return found


def _markdown(
    plan: Plan,
    tasks: Sequence[Task],
    results: Results,
    comparisons: Sequence[Comparison],
    plots: dict[str, Path],
    command: str,
) -> str:
    def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [columns, ["---"] * len(columns), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    text = [f"# Ablation: {plan.source.path.stem}", " ".join(words.method(plan))]
    if comparisons:
        text += ["## Verdicts", table(words.verdict_columns(plan), words.verdict_rows(comparisons))]
    text += ["## Scores", table(words.score_columns(plan, results), words.score_rows(plan, results))]
    for name, path in plots.items():
        text += [f"![{name}](plots/{path.name})", CAPTIONS[name]]
    if rows := words.prompt_rows(comparisons):
        text += ["## Prompt by prompt", table(words.PROMPT_COLUMNS, rows)]
    text += ["## Cost", table(words.cost_columns(results), words.cost_rows(plan, results))]
    text.append(words.cost_note(results))
    for name, log in _failures(plan, tasks):
        text += [f"## Failed: {name}", f"```\n{log}\n```"]
    text += ["## Made by", f"```sh\n{command}\n```", "\n".join(f"- {line}" for line in surroundings(results))]
    return "\n\n".join(part for part in text if part) + "\n"


def _html(
    plan: Plan,
    tasks: Sequence[Task],
    results: Results,
    comparisons: Sequence[Comparison],
    plots: dict[str, Path],
    command: str,
    root: Path,
) -> str:
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    name = plan.source.path.stem
    sections = [_verdicts(plan, comparisons), _scores(plan, results, plots)]
    for plot, title in (("curves", "Learning"), ("frontiers", "Quality and cost")):
        if plot in plots:
            costs = _costs(plan, results) if plot == "frontiers" else ""
            sections.append(_section(plot, title, _plot(plots[plot], plot) + costs))
    sections += [
        _samples(plan, results, root),
        _prompts(comparisons),
        _failed(plan, tasks),
        _made(plan, results, command),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ablation: {escape(name)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Ablation: {escape(name)}</h1>
<p>{escape(_what(plan))}</p>
{_facts(plan, tasks, comparisons)}
</header>
<main>
{"".join(sections)}</main>
<footer>Written by blip3o {escape(__version__)}.</footer>
</body>
</html>
"""


def _what(plan: Plan) -> str:
    axes = "; ".join(f"{axis}: {', '.join(variants)}" for axis, variants in plan.axes.items())
    return f"From {plan.base_path.name}, what varies: {axes}. Compared by {plan.primary}."


def _facts(plan: Plan, tasks: Sequence[Task], comparisons: Sequence[Comparison]) -> str:
    counts = {name: sum(one.verdict == name for one in comparisons) for name in words_of_verdicts()}
    facts = {"runs done": f"{sum(task.state == 'done' for task in tasks)} of {len(tasks)}"}
    failed = sum(task.state == "failed" for task in tasks)
    facts |= {"runs failed": str(failed)} if failed else {}
    facts |= {name: str(number) for name, number in counts.items()}
    if plan.margin is not None:
        facts["margin"] = f"{plan.margin:g}"
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def words_of_verdicts() -> tuple[str, ...]:
    """The verdicts in the order in which they are counted."""
    return ("equivalent", "better", "worse", "undecided")


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}\n</section>\n'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table whose first columns are text and the others numbers; verdicts get their colour."""

    def cell(index: int, value: str) -> str:
        if value in words_of_verdicts():
            return f'<td class="verdict {value}">{value}</td>'
        return f'<td class="number">{escape(value)}</td>' if index >= text_columns else f"<td>{escape(value)}</td>"

    heads = "".join(
        f'<th scope="col"{" class=number" if index >= text_columns else ""}>{_breakable(column)}</th>'
        for index, column in enumerate(columns)
    )
    body = "\n".join("<tr>" + "".join(cell(i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _breakable(name: str) -> str:
    """A name that may break after a slash or an underscore."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _verdicts(plan: Plan, comparisons: Sequence[Comparison]) -> str:
    body = "<p>No comparison has finished runs on both sides.</p>"
    if comparisons:
        body = _table(words.verdict_columns(plan), words.verdict_rows(comparisons), text_columns=2)
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in words.method(plan))
    return _section("verdicts", "Verdicts", f'{body}\n<ul class="soft">{told}</ul>')


def _scores(plan: Plan, results: Results, plots: dict[str, Path]) -> str:
    plot = _plot(plots["quality"], "quality") if "quality" in plots else ""
    return _section(
        "scores", "Quality", plot + _table(words.score_columns(plan, results), words.score_rows(plan, results))
    )


def _costs(plan: Plan, results: Results) -> str:
    note = words.cost_note(results)
    table = _table(words.cost_columns(results), words.cost_rows(plan, results))
    return table + (f'<p class="soft">{escape(note)}</p>' if note else "")


def _plot(path: Path, name: str) -> str:
    return f'<img src="{_inline(path)}" alt="{escape(CAPTIONS[name])}">\n<p class="soft">{escape(CAPTIONS[name])}</p>\n'


def _inline(path: Path) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _samples(plan: Plan, results: Results, root: Path) -> str:
    """A row for each variant, its first seed; the same captions and noise in every row."""
    seed = plan.seeds[0]
    drawn = {one: results[one][seed] for one in words.shown(plan, results) if results[one].get(seed, {}).get("samples")}
    if not drawn:
        return ""
    captions = [caption for _, caption in next(iter(drawn.values()))["samples"]]
    heads = "".join(f'<th scope="col">{escape(caption)}</th>' for caption in captions)
    rows = []
    for one, result in drawn.items():
        folder = root / "runs" / result["id"]
        cells = "".join(
            f'<td><img src="{_inline(folder / file)}" alt="{escape(caption)}"></td>'
            for file, caption in result["samples"]
        )
        rows.append(f'<tr><th scope="row">{escape(label(plan, one))}</th>{cells}</tr>')
    told = f"The same captions, drawn from the same noise, by the models of seed {seed}; no choice of the best."
    return _section(
        "samples",
        "Pictures",
        f'<p>{told}</p><div class="scroll"><table class="samples"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _prompts(comparisons: Sequence[Comparison]) -> str:
    rows = words.prompt_rows(comparisons)
    if not rows:
        return ""
    told = (
        "All variants are scored on the same prompts with the same noise. The first interval (bootstrap over prompts) "
        "is about the trained models at hand, whatever another training would give; the second takes both seeds and "
        "prompts as a sample. The noise share is the part of the scatter between seeds that more prompts would remove. "
        "No verdict rests on this table."
    )
    return _section("prompts", "Prompt by prompt", f"<p>{told}</p>{_table(words.PROMPT_COLUMNS, rows)}")


def _failed(plan: Plan, tasks: Sequence[Task]) -> str:
    failures = _failures(plan, tasks)
    body = "".join(f"<h3>{escape(name)}</h3><pre>{escape(log)}</pre>" for name, log in failures)
    return _section("failed", "Failed runs", body) if failures else ""


def _made(plan: Plan, results: Results, command: str) -> str:
    told = "".join(f"<li>{escape(line)}</li>" for line in surroundings(results))
    return _section(
        "made",
        "Made by",
        f"<pre>{escape(command)}</pre><ul>{told}</ul><p>The plan:</p><pre>{escape(plan.source.text)}</pre>",
    )
