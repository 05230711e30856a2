"""`blip3o bench generate`: prompt to pixels, against the released procedure and against the machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip3o.ar.base import Sampling
from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.compiled.step import MOST_ROWS
from blip3o.ar.decoding import draw
from blip3o.ar.lean import head_width
from blip3o.bench import released
from blip3o.bench.machine import Machine, measure_machine
from blip3o.bench.report import Report
from blip3o.bench.shapes import Measured, Shape, build
from blip3o.bench.timing import Stopwatch, compare
from blip3o.diffusion.flow import FlowHead
from blip3o.flops import flop_counter
from blip3o.pipeline import check_device
from blip3o.structures import Conditioning

GUIDANCE_SCALE = 2.0
GREEDY, PUBLISHED = Sampling(temperature=0.0), Sampling()
TOLERANCE = 1e-4
_DRAWS = 20


def bench_generate(
    shape: str | Shape,
    *,
    batch_size: int = 1,
    repeats: int = 5,
    num_inference_steps: int | None = None,
    num_tokens: int | None = None,
    compile_decoding: bool = False,
    device: str = "cpu",
    dtype: str = "bfloat16",
) -> Report:
    """Checks that both sides give the same, then times them.

    Args:
        shape: a shape's name, or one of your own.
        batch_size: images at a time.
        repeats: timed rounds.
        num_inference_steps: denoising steps; the shape's when None.
        num_tokens: image tokens, a square number; the shape's when None.
        compile_decoding: whether we decode by the compiled kernel, see `CausalLM.compile_decoding`.
        device: where.
        dtype: precision of the timing; outputs are compared in float32 first.

    Raises:
        ValueError: if ids or latents differ in float32.
    """
    check_device(device)
    measured = build(shape, batch_size, num_tokens=num_tokens)
    measured.model.to(device)
    if compile_decoding:
        measured.model.ar.compile_decoding()
        if batch_size > MOST_ROWS:
            raise ValueError(f"batch_size ({batch_size}) must be at most {MOST_ROWS} with compile_decoding.")
    steps = num_inference_steps or measured.num_inference_steps
    bench = _Bench(measured, steps)
    checks = {"float32": bench.check()}
    precision = getattr(torch, dtype)
    measured.model.to(precision)
    if precision != torch.float32:
        checks[dtype] = bench.count_differences()
    where = torch.device(device)
    machines: list[Machine] = []

    def measure(watch: Stopwatch) -> None:
        """In every round, since other guests of a host take their part of its memory's rate."""
        with watch.stage("machine"):
            machines.append(measure_machine(where, precision))

    times = compare(
        {
            "released procedure": lambda watch: bench.theirs(PUBLISHED, watch),
            "blip3o": lambda watch: bench.ours(PUBLISHED, watch),
            "machine": measure,
        },
        repeats,
        where,
    )
    del times["machine"]
    machine, own = Machine.median(machines[-repeats:]), times["blip3o"]
    return Report(
        title=f"generate, {measured.name}",
        settings={
            "batch_size": batch_size,
            "tokens": measured.model.tokenizer.num_tokens(),
            "num_inference_steps": steps,
            "guidance_scale": GUIDANCE_SCALE,
            "temperature": PUBLISHED.temperature,
            "top_k": PUBLISHED.top_k,
            "top_p": PUBLISHED.top_p,
            "dtype": dtype,
            "device": device,
            "compile_decoding": compile_decoding,
            "repeats": repeats,
        },
        checks=checks,
        times=times,
        baseline="released procedure",
        notes=limits(bench, machine, own["tokens"].median, own["denoising"].median),
    )


class _Bench:
    """Both sides on one model, one prompt a row and one noise.

    Attributes:
        exact: (B, N) the greedy ids in float32, once `check` has passed.
    """

    exact: Tensor

    def __init__(self, measured: Measured, num_inference_steps: int) -> None:
        self.model, self.captions, self.steps = measured.model, measured.captions, num_inference_steps
        assert isinstance(self.model.diffusion, FlowHead)
        shape = (len(self.captions), *self.model.diffusion.latent_shape)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    @property
    def start(self) -> Tensor:
        """The noise where the model is and in its precision."""
        return self.noise.to(next(self.model.diffusion.parameters()))

    def ours(self, sampling: Sampling, watch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Ids and latents by the parts that `Blip3oNext.generate` calls: `write`, `condition`, `sample`, `decode`."""
        with watch.stage("tokens"):
            generator = torch.Generator().manual_seed(0)
            tokens = self.model.write(self.captions, sampling=sampling, generator=generator)
        with watch.stage("denoising"), torch.no_grad():
            condition, null = self.model.condition(tokens)
            latents = self.model.diffusion.sample(
                condition,
                num_inference_steps=self.steps,
                guidance_scale=GUIDANCE_SCALE,
                negative=null,
                latents=self.start,
            )
        with watch.stage("pixels"), torch.no_grad():
            self.model.diffusion.decode(latents)
        return tokens.ids, latents

    def theirs(self, sampling: Sampling, watch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Ids and latents by the released procedure, its draws repeated at every call."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            return released.generate(
                self.model,
                self.captions,
                sampling=sampling,
                num_inference_steps=self.steps,
                guidance_scale=GUIDANCE_SCALE,
                noise=self.start,
                watch=watch,
            )

    def both(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What both sides give where the most likely tokens are taken."""
        watch = Stopwatch(torch.device("cpu"))
        return self.ours(GREEDY, watch), self.theirs(GREEDY, watch)

    def check(self) -> str:
        """What was found equal.

        Raises:
            ValueError: if it is not.
        """
        (ids, latents), (their_ids, their_latents) = self.both()
        different = int((ids != their_ids).sum())
        if different:
            raise ValueError(
                f"{different} of {ids.numel()} greedy ids differ from the released procedure's in float32, so there is "
                "nothing to time; this is a fault in blip3o, or a tie between two tokens: try another batch_size."
            )
        largest = float((latents - their_latents).abs().max())
        if not largest <= TOLERANCE:
            raise ValueError(
                f"latents differ from the released procedure's by {largest:.2g} in float32, more than {TOLERANCE}, so "
                "there is nothing to time; this is a fault in blip3o."
            )
        self.exact = ids
        told = f"{ids.numel()} greedy ids equal ({len(ids.unique())} different codes)"
        return f"{told}; latents differ by at most {largest:.1e} (allowed {TOLERANCE})"

    def count_differences(self) -> str:
        """How ids compare in a lower precision, after `check`.

        Rounding moves near ties there, after which the rest of a row is another; so each side is told of against the
        ids in float32 too.
        """
        (ids, _), (their_ids, _) = self.both()
        alike, own, their = (
            _equal_at_first(*pair) for pair in ((ids, their_ids), (ids, self.exact), (their_ids, self.exact))
        )
        return (
            f"{int((ids != their_ids).sum())} of {ids.numel()} greedy ids differ; equal before the first one that "
            f"does: {alike} of {ids.shape[1]} on average; to float32: blip3o {own}, released procedure {their}"
        )


def _equal_at_first(ids: Tensor, other: Tensor) -> str:
    """Ids of a row (B, N) before the first one that differs, on average."""
    return f"{float(((ids != other).long().cumsum(1) == 0).sum(1).float().mean()):.4g}"


def limits(bench: _Bench, machine: Machine, tokens: float, denoising: float) -> dict[str, Any]:
    """How near to the machine's limits we are.

    Args:
        bench: what ran.
        machine: its measured rates.
        tokens: seconds of all tokens of a batch.
        denoising: seconds of all denoising steps.
    """
    model, rows = bench.model, len(bench.captions)
    ar, head = model.ar, model.diffusion
    assert isinstance(ar, CausalLM) and isinstance(head, FlowHead)
    num_tokens = model.tokenizer.num_tokens()
    prompt = model.sequences.prompts(bench.captions)[0].shape[1]
    weights, kept, token_flops = decoding_work(ar, prompt + num_tokens // 2)
    read = weights + rows * kept
    per_token = tokens / num_tokens
    least = max(read / machine.bandwidth, rows * token_flops / machine.matmul)
    drawing = _drawing_seconds(rows, ar)
    step = denoising / bench.steps
    flops = _step_flops(bench)
    return {
        "machine": machine.to_json(),
        "decoding": {
            "bytes_of_weights_a_token": weights,
            "bytes_of_keys_and_values_a_token": rows * kept,
            "ms_a_token": per_token * 1e3,
            "least_ms_a_token": least * 1e3,
            "share_of_the_limit": least / per_token,
            "gb_per_s": read / per_token / 1e9,
            "share_of_the_arithmetic": rows * token_flops / per_token / machine.matmul,
            "ms_of_drawing_a_token": drawing * 1e3,
            "drawing_over_the_model": drawing / (per_token - drawing),
        },
        "denoising": {
            "gflop_a_step": flops / 1e9,
            "ms_a_step": step * 1e3,
            "least_ms_a_step": flops / machine.matmul * 1e3,
            "share_of_the_limit": flops / machine.matmul / step,
        },
    }


def decoding_work(ar: CausalLM, positions: int) -> tuple[int, int, int]:
    """What one token takes.

    Args:
        ar: the model.
        positions: that are attended to.

    Returns:
        bytes of the weights that are read, those of the layers and of the head's image rows; bytes of keys and values
        that a row reads; and floating-point operations of a row.
    """
    config, decoder = ar.lm.config, ar.lm.get_decoder()
    assert ar.vocabulary is not None
    size = ar.head.element_size()
    numbers = sum(p.numel() for p in decoder.layers.parameters()) + ar.vocabulary.num_codes * ar.hidden_size
    width = head_width(config)
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * width * positions
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * width * positions
    return size * numbers, size * kept, 2 * numbers + attention


@torch.no_grad()
def _drawing_seconds(rows: int, ar: CausalLM) -> float:
    """Seconds of drawing a token for every row: what the loop adds to the model's own time."""
    assert ar.vocabulary is not None
    device = ar.head.device
    logits = torch.randn(rows, ar.vocabulary.num_codes, generator=torch.Generator().manual_seed(0)).to(ar.head)
    generator = torch.Generator().manual_seed(0)

    def run(watch: Stopwatch) -> None:
        with watch.stage("drawing"):
            for _ in range(_DRAWS):
                draw(logits, PUBLISHED, generator)

    return compare({"drawing": run}, 3, device)["drawing"]["total"].median / _DRAWS


@torch.no_grad()
def _step_flops(bench: _Bench) -> int:
    """Floating-point operations of one denoising step with guidance, counted."""
    head = bench.model.diffusion
    assert isinstance(head, FlowHead)
    both = torch.cat([bench.start, bench.start])
    condition = torch.zeros(len(both), 1 + bench.model.tokenizer.num_tokens(), head.cond_dim).to(both)
    with flop_counter() as counter:
        head.denoiser(both, both.new_ones(len(both)), Conditioning(condition))
    return int(counter.get_total_flops())
