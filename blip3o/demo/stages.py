"""What the demo does: a picture for each task, a score over many captions, and a short training run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from blip3o.checkpoints import instantiate
from blip3o.data.shapes import ShapesDataModule
from blip3o.demo.chart import draw_losses
from blip3o.demo.report import Sample, Score, TokenGrid, Training
from blip3o.evaluation.shapes import check_size, evaluate
from blip3o.images import save_png
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.pixels import to_uint8
from blip3o.shapes import Verdict, evaluation_captions, get_world, parse_caption, verify
from blip3o.training.base import Optimization
from blip3o.training.history import Metrics, fit_steps
from blip3o.training.joint import JointModule

BATCH_SIZE = 16
"""Rows a step of the training run: few, so that it takes seconds."""

KEPT = ("tokenizer.", "diffusion.codec.")
"""What makes the targets of training and so keeps the model's weights; everything else starts anew."""


def showcase(pipe: Blip3oPipeline, root: Path, *, world_name: str, seed: int) -> list[Sample]:
    """Draws one picture for each task of a world and has it verified.

    Args:
        pipe: the pipeline.
        root: folder of the page; pictures go to `showcase/` in it.
        world_name: world of the captions.
        seed: picks the captions; picture i is drawn with `seed + i`.

    Raises:
        ValueError: if the model's pictures have another size than the world's, or it writes no image tokens to show.
    """
    if not pipe.model.bridge.needs_tokens:
        raise ValueError(
            f"the model's bridge reads {pipe.model.bridge.reads!r}, so that it writes no image tokens, which this page "
            "shows; choose another model."
        )
    world = get_world(world_name)
    captions = list(
        {parse_caption(c, world).tag: c for c in evaluation_captions(world, len(world.tags), seed)}.values()
    )
    seeds = [seed + index for index in range(len(captions))]
    output = pipe(captions, generator=[torch.Generator().manual_seed(one) for one in seeds])
    check_size(output.images[0], world_name)
    verdicts = verify([np.asarray(image) for image in output.images], captions, world)
    folder = root / "showcase"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = pipe.model.tokenizer
    decoded: list[Image.Image] = []
    if tokenizer.decodes_to == "pixels":
        with torch.no_grad():
            decoded = [Image.fromarray(picture) for picture in to_uint8(tokenizer.decode(output.token_ids))]
    samples = []
    for index, (caption, verdict) in enumerate(zip(captions, verdicts, strict=True)):
        tag = parse_caption(caption, world).tag
        image, tokens = f"showcase/{tag}.png", f"showcase/{tag}-tokens.png"
        save_png(output.images[index], root / image, {"prompt": caption, "seed": seeds[index], **pipe.defaults.given()})
        if decoded:
            decoded[index].save(root / tokens)
        samples.append(
            Sample(
                caption=caption,
                tag=tag,
                image=image,
                tokens=token_grid(pipe.model, output.token_ids[index]),
                decoded=tokens if decoded else None,
                correct=verdict.correct,
                reason=verdict.reason,
                found=describe(verdict),
            )
        )
    return samples


@torch.no_grad()
def token_grid(model: Blip3oNext, ids: Tensor) -> TokenGrid:
    """Ids (N,) as a grid, coloured by the first three coordinates of their codes."""
    codes = model.tokenizer.embed(ids[None])[0, :, :3].float().cpu()
    low, high = codes.amin(0), codes.amax(0)
    levels = torch.zeros(len(codes), 3)
    levels[:, : codes.shape[1]] = (codes - low) / (high - low).clamp(min=1e-6)
    side = model.tokenizer.grid_size
    colors = rearrange((levels * 255).round().int(), "(h w) c -> h w c", h=side).tolist()
    return TokenGrid(
        ids=rearrange(ids, "(h w) -> h w", h=side).tolist(),
        colors=[[(red, green, blue) for red, green, blue in row] for row in colors],
    )


def describe(verdict: Verdict) -> str:
    """What the verifier saw, in words."""
    seen = ", ".join(f"{one.color} {one.shape}" for one in verdict.detections) or "no object"
    return f"{seen} on {verdict.background or 'no plain'} background"


def score(pipe: Blip3oPipeline, root: Path, *, model_name: str, world_name: str, num_captions: int, seed: int) -> Score:
    """Evaluates the model; files go to `evaluation/` in `root`, the folder of the page."""
    folder = root / "evaluation"
    report = evaluate(pipe, folder, model_name=model_name, world=world_name, num_captions=num_captions, seed=seed)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return Score(report, rows, folder.name)


def train(
    model: Blip3oNext, root: Path, *, world_name: str, num_steps: int, seed: int, say: Callable[[str], None]
) -> Training:
    """Trains a model like `model` from new weights on freshly drawn scenes, and draws its loss curves.

    Args:
        model: lends its architecture, its tokenizer and its codec; it is not changed.
        root: folder of the page; the chart goes to `training.svg` in it.
        world_name: world of the scenes.
        num_steps: steps of `BATCH_SIZE` rows.
        seed: of weights, scenes and noise.
        say: told the losses now and then.
    """

    def tell(step: int, metrics: Metrics) -> None:
        if step % max(1, num_steps // 5) == 0:
            losses = ", ".join(f"{name} {metrics[name]:.2f}" for name in ("cross_entropy", "flow"))
            say(f"step {step} of {num_steps}: {losses}")

    optimization = Optimization(
        name="muon", lr=2e-3, schedule="linear", warmup_steps=min(10, num_steps), decay_fraction=0.6
    )
    module = JointModule(fresh_copy(model, seed), optimization, supervise="image", seed=seed)
    data = ShapesDataModule(world=world_name, batch_size=BATCH_SIZE, seed=seed, num_val=1, num_prompts=1)
    steps = fit_steps(module, data, num_steps=num_steps, on_step=tell)
    guess = math.log(model.tokenizer.codebook_size)
    chart = "training.svg"
    draw_losses(steps, guess, root / chart)
    return Training(steps, chart, BATCH_SIZE, guess)


def fresh_copy(model: Blip3oNext, seed: int) -> Blip3oNext:
    """A model of the same configuration: new weights in what joint training trains, the same in all else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = instantiate(model.config(), trust_remote_code=True)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(KEPT)}
    copy.load_state_dict(kept, strict=False)
    return copy
