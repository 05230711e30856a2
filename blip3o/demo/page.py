"""The demo's page: one HTML file that needs nothing but the pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from blip3o import __version__
from blip3o.demo.report import Report, Sample, Score, TokenGrid, Training

TASKS = {
    "single_object": "one object",
    "two_object": "two objects",
    "counting": "a number of objects",
    "colors": "an object of a colour",
    "position": "two objects and how they lie",
    "color_attr": "two objects, each of a colour",
}
"""GenEval's tasks in plain words."""

MAX_SIDE = 12
"""Largest token grid whose ids are printed; the cells of a larger one are too small to read."""


def render(report: Report) -> str:
    """The page as HTML; every text that comes from outside is escaped."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    shown = next((s for s in report.samples if s.tag == "position"), report.samples[0])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>BLIP3o-NEXT in parts: demo</title>
<style>
{style}</style>
</head>
<body>
{_header(report)}
<main>
{_path(shown)}
{_showcase(report.samples)}
{_score(report.score)}
{_training(report.training)}
{_parts(report)}
{_times(report)}
</main>
<footer>Written by blip3o {escape(__version__)}, {escape(report.machine)}.</footer>
</body>
</html>
"""


def _header(report: Report) -> str:
    overall = report.score.summary["overall"]
    facts = {
        "pictures below that are right": f"{sum(s.correct for s in report.samples)} of {len(report.samples)}",
        f"score over {report.score.summary['num_images']} captions": f"{overall['mean']:.0%}",
        "parameters": f"{sum(part.num_parameters for part in report.parts) / 1e6:.1f} M",
        "time for all of this": f"{sum(report.times.values()):.0f} s",
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<header>
<h1>Text to tokens to picture</h1>
<p>An autoregressive model reads a caption and writes image tokens; a diffusion head turns that model's hidden states
at those tokens into a picture. Everything here was just computed by the model <code>{escape(report.model_name)}</code>
on this computer, in a small world of coloured shapes where a program can tell exactly whether a picture is right.</p>
<dl class="facts">{items}</dl>
</header>"""


def _path(sample: Sample) -> str:
    decoded = ""
    if sample.decoded is not None:
        decoded = f"""<li><strong>3. What the tokens alone show</strong>
{_picture(sample.decoded, f"the tokenizer's decoding of the tokens for: {sample.caption}")}
<p class="soft">The tokenizer's own decoder turns the ids straight into pixels.</p></li>"""
    return f"""<section id="path">
<h2>How a picture comes about</h2>
<p class="prompt">1. {escape(sample.caption)}</p>
<ol class="steps">
<li><strong>2. The tokens the model writes</strong>
{_tokens(sample.tokens)}
<p class="soft">One id a cell, row by row; like colours are like codes.</p></li>
{decoded}
<li><strong>{4 if decoded else 3}. The picture the diffusion head renders</strong>
{_picture(sample.image, f"the picture rendered for: {sample.caption}")}
<p>{_verdict(sample)}</p></li>
</ol>
</section>"""


def _showcase(samples: Sequence[Sample]) -> str:
    cards = "\n".join(
        f"""<li><figure>{_picture(sample.image, f"the picture rendered for: {sample.caption}")}
<figcaption><strong>{escape(sample.caption)}</strong><br>
<span class="soft">{escape(TASKS.get(sample.tag, sample.tag))}</span><br>
{_verdict(sample)}</figcaption></figure></li>"""
        for sample in samples
    )
    return f"""<section id="showcase">
<h2>One picture for each task</h2>
<p>The first caption of each task, not a choice of the best. The verifier reads the pixels alone and asks for exactly
the objects of the caption, nothing missing and nothing more.</p>
<ul class="cards">
{cards}
</ul>
</section>"""


def _score(score: Score) -> str:
    rows = "\n".join(
        f"""<tr><th scope="row">{escape(TASKS.get(tag, tag))} <span class="soft">({escape(tag)})</span></th>
<td class="number">{one["num_correct"]} of {one["num_images"]}</td>{_share(one["mean"], one["interval"])}</tr>"""
        for tag, one in score.summary["tags"].items()
    )
    overall = score.summary["overall"]
    sheets = []
    for tag in score.summary["tags"]:
        items = "".join(
            f"""<li><figure class="{"good" if row["correct"] else "bad"}">
<img class="pixels" src="{escape(score.folder)}/{escape(row["filename"])}" loading="lazy" alt="{escape(row["prompt"])}">
<figcaption>{"✓ right" if row["correct"] else "✗ wrong"}</figcaption></figure>
{escape(row["prompt"])}</li>"""
            for row in score.rows
            if row["tag"] == tag
        )
        sheets.append(f'<h3>{escape(TASKS.get(tag, tag))}</h3>\n<ul class="sheet">{items}</ul>')
    return f"""<section id="score">
<h2>The score over {score.summary["num_images"]} captions</h2>
<p>Captions that name a colour are held out: the model was never trained on those below. The two tasks without colours
have too few captions to hold any out. In the bars, the line is the share of right pictures and the band its 95&nbsp;%
interval, which is wide when captions are few.</p>
<div class="scroll"><table class="data">
<thead><tr><th scope="col">task</th><th scope="col" class="number">right</th>
<th scope="col" class="number">share</th><th scope="col" class="number">95&nbsp;% interval</th>
<th scope="col">0 to 100&nbsp;%</th></tr></thead>
<tbody>
{rows}
</tbody>
<tfoot><tr><th scope="row">mean of the tasks</th><td></td>{_share(overall["mean"], overall["interval"])}</tr></tfoot>
</table></div>
{"".join(sheets)}
</section>"""


def _share(mean: float, interval: Sequence[float]) -> str:
    """Three cells: a share, its interval, and both as a bar."""
    low, high = interval
    band = f"left:{low:.1%};width:{high - low:.1%}"
    return (
        f'<td class="number">{mean:.0%}</td><td class="number">{low:.0%} to {high:.0%}</td>'
        f'<td><div class="bar" aria-hidden="true"><span style="{band}"></span>'
        f'<i style="left:{mean:.1%}"></i></div></td>'
    )


def _training(training: Training) -> str:
    names = {"cross_entropy": "cross-entropy (nats a token)", "flow": "flow-matching loss"}
    rows = []
    for name, told in names.items():
        first, last = training.ends(name)
        rows.append(
            f'<tr><th scope="row">{escape(told)}</th><td class="number">{first:.2f}</td>'
            f'<td class="number">{last:.2f}</td></tr>'
        )
    count = len(training.steps)
    return f"""<section id="training">
<h2>Training from scratch, {count} steps</h2>
<p>The same training code that made the model, started from new weights: AR model, bridge and denoiser learn together
on {training.batch_size} fresh scenes a step, while tokenizer and codec stay as they are. So short a run only shows
that learning begins.</p>
<img src="{escape(training.chart)}" alt="Loss curves over {count} steps; the table below has their ends">
<div class="scroll"><table class="data">
<thead><tr><th scope="col">loss</th><th scope="col" class="number">first tenth</th>
<th scope="col" class="number">last tenth</th></tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
</section>"""


def _parts(report: Report) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(part.name)}</th><td><code>{escape(part.class_name)}</code></td>'
        f'<td class="number">{part.num_parameters:,}</td><td>{escape(part.sizes)}</td></tr>'
        for part in report.parts
    )
    settings = ", ".join(f"{name} {value}" for name, value in report.defaults.items())
    return f"""<section id="parts">
<h2>The parts</h2>
<p>Each can be exchanged for another of its kind by a line of YAML.</p>
<div class="scroll"><table class="data">
<thead><tr><th scope="col">part</th><th scope="col">class</th><th scope="col" class="number">parameters</th>
<th scope="col">sizes</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p class="soft">Settings of all pictures: {escape(settings)}.</p>
</section>"""


def _times(report: Report) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{seconds:.1f} s</td></tr>'
        for name, seconds in report.times.items()
    )
    return f"""<section id="times">
<h2>What it took</h2>
<div class="scroll"><table class="data">
<thead><tr><th scope="col">stage</th><th scope="col" class="number">wall time</th></tr></thead>
<tbody>
{rows}
</tbody>
<tfoot><tr><th scope="row">all</th><td class="number">{sum(report.times.values()):.1f} s</td></tr></tfoot>
</table></div>
<h3>Make this page again</h3>
<pre>{escape(report.command)}</pre>
</section>"""


def _picture(file: str, alt: str) -> str:
    return f'<img class="pixels" src="{escape(file)}" width="256" height="256" alt="{escape(alt)}">'


def _verdict(sample: Sample) -> str:
    if sample.correct:
        return f'<span class="right">✓ right</span>: {escape(sample.found)}'
    return f'<span class="wrong">✗ wrong</span>: {escape(sample.reason)}'


def _tokens(grid: TokenGrid) -> str:
    readable = len(grid.ids) <= MAX_SIDE
    rows = "".join(
        "<tr>" + "".join(render_cell(i, c, readable) for i, c in zip(ids, colors, strict=True)) + "</tr>"
        for ids, colors in zip(grid.ids, grid.colors, strict=True)
    )
    return f'<table class="tokens" aria-label="grid of token ids">{rows}</table>'


def render_cell(token: int, color: Sequence[int], readable: bool) -> str:
    """A cell of a token grid, its text black or white, whichever stands out more."""
    red, green, blue = (_linear(level / 255) for level in color)
    ink = "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"
    background = "#" + "".join(f"{level:02x}" for level in color)
    return f'<td style="background:{background};color:{ink}">{token if readable else ""}</td>'


def _linear(level: float) -> float:
    """Linear light of an sRGB level, both in [0, 1]."""
    return level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4
