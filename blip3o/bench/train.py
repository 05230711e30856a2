"""`blip3o bench train`: joint training, against logits over the full vocabulary and encoders that run at every step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from blip3o.bench import released
from blip3o.bench.report import Report
from blip3o.bench.shapes import PUBLISHED, Measured, Shape, build
from blip3o.bench.timing import Stopwatch, compare
from blip3o.diffusion.base import Codec
from blip3o.model import Blip3oNext
from blip3o.pipeline import check_device
from blip3o.prompts import Supervise
from blip3o.training.freezing import freeze
from blip3o.training.joint import enable_gradient_checkpointing

RELEASED, LIVE, ENCODED = "released procedure", "blip3o", "blip3o, encoded data"
TOLERANCE = 1e-4


class TrainingBench:
    """One batch, and the loss of it that each side computes.

    Args:
        measured: the model; it is put into training mode, and its tokenizer and codec are frozen.
        supervise: tokens that both sides train on.
        lowered: precision of autocast, None for none.
        gradient_checkpointing: whether the AR model and the denoiser compute activations again, on every side.
    """

    def __init__(
        self,
        measured: Measured,
        supervise: Supervise,
        lowered: torch.dtype | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.model = measured.model
        self.captions = measured.captions
        self.supervise: Supervise = supervise
        self.lowered = lowered
        _choose_trainable(self.model, measured.name)
        if gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        rows, generator = len(self.captions), torch.Generator().manual_seed(1)
        sides = (self.model.diffusion.image_size or self.model.tokenizer.image_size, self.model.tokenizer.image_size)
        images = [torch.rand(rows, 3, side, side, generator=generator) * 2 - 1 for side in sides]
        self.images, self.token_images = (one.to(self.model.device) for one in images)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # The learning rate is zero so that all sides keep the same weights; the work of a step is the same.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)

    @property
    def sides(self) -> dict[str, Callable[[], Tensor]]:
        """The losses by side; the last one where the model takes encoded data."""
        sides: dict[str, Callable[[], Tensor]] = {RELEASED: self.theirs, LIVE: self.live}
        if {"image_ids", "latents"} <= signature(Blip3oNext.losses).parameters.keys():
            sides[ENCODED] = partial(self.ours, **self.encoded())
        return sides

    @torch.no_grad()
    def encoded(self) -> dict[str, Any]:
        """The batch as encoded shards hold it."""
        ids = self.model.tokenizer.encode(self.token_images).ids
        return {"images": None, "image_ids": ids, "latents": self.model.diffusion.encode(self.images)}

    def theirs(self) -> Tensor:
        """The released procedure's loss."""
        return released.losses(
            self.model,
            self.images,
            self.token_images,
            self.captions,
            supervise=self.supervise,
            generator=self._generators(),
        )

    def live(self) -> Tensor:
        """Our loss of pictures."""
        return self.ours(images=self.images, token_images=self.token_images)

    def ours(self, **batch: Any) -> Tensor:
        """Our loss of a batch, pictures or encoded: the arguments of `Blip3oNext.losses`."""
        losses = self.model.losses(
            **batch, captions=self.captions, supervise=self.supervise, generator=self._generators()
        )
        return losses.cross_entropy / losses.num_tokens + losses.flow.mean()

    def step(self, loss: Callable[[], Tensor], watch: Stopwatch) -> None:
        """One step of training, its stages timed."""
        with watch.stage("forward"), self._autocast():
            value = loss()
        with watch.stage("backward"):
            value.backward()
        with watch.stage("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def check(self) -> str:
        """Compares losses and gradients with the released procedure's, in float32.

        Raises:
            ValueError: if they differ.
        """
        found = {name: self._loss_and_gradient(loss) for name, loss in self.sides.items()}
        expected, gradient = found.pop(RELEASED)
        told = []
        for name, (value, own) in found.items():
            off, turned = abs(value - expected) / abs(expected), float((own - gradient).norm() / gradient.norm())
            if not (off <= TOLERANCE and turned <= 10 * TOLERANCE):
                raise ValueError(
                    f"{name} gives a loss of {value}, the released procedure {expected}, and gradients that differ by "
                    f"{turned:.1e} of their norm, so there is nothing to time; this is a fault in blip3o."
                )
            told.append(f"{name}: loss {value:.6f} differs by {off:.0e}, gradients by {turned:.0e} of their norm")
        return "; ".join(told)

    def _loss_and_gradient(self, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """A loss, and all its gradients as one vector."""
        value = loss()
        value.backward()
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        whole = torch.cat(gradients).cpu()
        self.model.zero_grad()
        return float(value.detach()), whole

    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(len(self.captions))]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.lowered, enabled=self.lowered is not None)


def bench_train(
    shape: str | Shape,
    *,
    batch_size: int = 2,
    repeats: int = 5,
    supervise: Supervise = "image",
    gradient_checkpointing: bool = False,
    device: str = "cpu",
    dtype: str = "bfloat16",
) -> Report:
    """Checks that all sides have the same loss and gradients, then times steps of AdamW, then measures memory.

    Args:
        shape: a shape's name, or one of your own, whose memory is not measured.
        batch_size: rows a step.
        repeats: timed rounds.
        supervise: tokens that all sides train on; with `image`, cross-entropy is over the image ids alone.
        gradient_checkpointing: whether all sides compute activations again in the backward pass.
        device: where.
        dtype: precision of autocast in the timing; losses are compared in float32 first.

    Raises:
        ValueError: if losses or gradients differ in float32.
    """
    check_device(device)
    measured = build(shape, batch_size)
    measured.model.to(device)
    bench = TrainingBench(measured, supervise, gradient_checkpointing=gradient_checkpointing)
    checks = {"float32": bench.check()}
    bench.lowered = None if dtype == "float32" else getattr(torch, dtype)
    times = compare(
        {name: partial(bench.step, loss) for name, loss in bench.sides.items()}, repeats, torch.device(device)
    )
    sides = list(bench.sides)
    del bench, measured
    notes: dict[str, Any] = {}
    if isinstance(shape, str):
        notes["peak_memory_gb"] = {
            side: peak_memory(side, shape, batch_size, supervise, gradient_checkpointing, device, dtype) / 1e9
            for side in sides
        }
    return Report(
        title=f"train, {shape if isinstance(shape, str) else 'given'}",
        settings={
            "batch_size": batch_size,
            "supervise": supervise,
            "gradient_checkpointing": gradient_checkpointing,
            "optimizer": "AdamW, fused",
            "autocast": dtype,
            "device": device,
            "repeats": repeats,
        },
        checks=checks,
        times=times,
        baseline=RELEASED,
        notes=notes,
    )


def peak_memory(
    side: str, shape: str, batch_size: int, supervise: str, gradient_checkpointing: bool, device: str, dtype: str
) -> int:
    """Bytes that two steps of one side take at most, in a process of their own.

    On CUDA they are the allocator's; elsewhere the whole process's resident memory.
    """
    given = json.dumps([side, shape, batch_size, supervise, gradient_checkpointing, device, dtype])
    done = subprocess.run(
        [sys.executable, "-m", "blip3o.bench.peak", given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the process that measures the memory of {side} failed: {last}")
    return int(done.stdout.splitlines()[-1])


def _choose_trainable(model: Blip3oNext, name: str) -> None:
    """What trains: as published for the published sizes, else all but the image tokenizer and the codec."""
    if name == "published":
        freeze(model, yaml.safe_load(PUBLISHED.read_text())["model"]["init_args"]["trainable"])
    frozen: list[nn.Module] = [model.tokenizer, *(m for m in model.modules() if isinstance(m, Codec))]
    for module in frozen:
        module.requires_grad_(False)
    model.train()
