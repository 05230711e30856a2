"""What `blip3o info` prints: the parts of a model or an experiment, what they cost, and the machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from blip3o import __version__
from blip3o.attention import KERNELS, HasAttention
from blip3o.costs import TrainingMemory, image_cost, training_memory
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults, find_model

PROMPT_LENGTH = 64
"""Tokens of the prompt that the work for an image is counted with."""


@dataclass(frozen=True)
class PartInfo:
    """One part of a model.

    Attributes:
        name: its name in the model.
        class_name: its class.
        num_parameters: its parameters, shared ones once.
        num_trainable: those that require a gradient.
        sizes: its notable sizes, in words.
    """

    name: str
    class_name: str
    num_parameters: int
    num_trainable: int
    sizes: str = ""


def describe_parts(model: Blip3oNext) -> list[PartInfo]:
    """The parts of a model."""
    context = "unlimited" if model.ar.context_length == sys.maxsize else str(model.ar.context_length)
    sizes = {
        "tokenizer": f"{model.tokenizer.num_tokens()} tokens an image, {model.tokenizer.codebook_size} codes",
        "ar": f"hidden size {model.ar.hidden_size}, context {context}",
        "bridge": f"{model.bridge.in_features} to {model.bridge.out_features} features, reads {model.bridge.reads}",
        "diffusion": f"condition width {model.diffusion.cond_dim}",
    }
    return [
        _part(name, module, sizes.get(name) or f"{module.in_features} to {module.out_features} features")
        for name, module in model.parts().items()
    ]


def _part(name: str, module: nn.Module, sizes: str = "") -> PartInfo:
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    trainable = sum(count for count, trains in counts if trains)
    return PartInfo(name, type(module).__name__, sum(count for count, _ in counts), trainable, sizes)


@dataclass(frozen=True)
class AttentionInfo:
    """Which attention kernel a part runs.

    Attributes:
        name: the part's path in the model.
        setting: its `attention`; empty where the part has no such setting.
        kernel: the library's name of what runs; or why the setting can not be used.
        others: what stands against each of the other kernels, in words.
    """

    name: str
    setting: str
    kernel: str
    others: str = ""


def describe_attention(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[AttentionInfo]:
    """The attention kernels of a model's parts, and of transformers' vision towers within other parts.

    Args:
        model: on any device, the meta device too.
        device: where it is to run.
        dtype: of the numbers that it is to compute with.
    """
    rows: list[AttentionInfo] = []
    seen: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{above}.") for above in seen):
            continue
        if isinstance(module, HasAttention):
            rows.append(_attention(name, module, device, dtype))
        elif isinstance(module, PreTrainedModel):
            rows.append(AttentionInfo(name, "", str(module.config._attn_implementation), "transformers' own choice"))
        else:
            continue
        seen.append(name)
    return rows


def _attention(name: str, part: HasAttention, device: torch.device, dtype: torch.dtype) -> AttentionInfo:
    obstacles = part.attention_obstacles(device, dtype)
    label = f"{name} and its vision tower" if getattr(part, "reads_images", False) else name
    others = {kernel: obstacles[kernel] or "would run" for kernel in KERNELS}
    try:
        kernel = part.attention_kernel(device, dtype)
    except ValueError:
        kernel = ""
    told = part.attention_words(kernel, device) if kernel else f"none: {obstacles[part.attention]}"
    others.pop(kernel or part.attention)
    return AttentionInfo(label, part.attention, told, "; ".join(f"{key}: {why}" for key, why in others.items()))


def describe_machine() -> str:
    """Versions and devices in one line."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores, "
        f"accelerator: {accelerator}"
    )


def print_model_info(name: str, devices: int = 8, *, trust_remote_code: bool = False) -> None:
    """Describes a saved model, and what training it jointly would take, with AdamW in float32.

    Args:
        name: a bundled name, a folder or a hub id.
        devices: GPUs that FSDP splits the training state over.
        trust_remote_code: also import classes from outside the trusted packages.

    Raises:
        ValueError: if there is no such model, or its configuration does not build.
    """
    from blip3o.checkpoints import CONFIG_NAME, describe_model
    from blip3o.training.joint import JointModule
    from blip3o.training.optimization import state_size

    folder = find_model(name)
    model, generation = describe_model(folder, trust_remote_code=trust_remote_code)
    module = JointModule(model)
    defaults = GenerationDefaults.stored(generation, folder / CONFIG_NAME)
    console = Console()
    _print_parts(console, f"model {name}", describe_parts(model))
    _print_image_cost(console, model, defaults)
    _print_attention(console, model, torch.float32)
    memory = training_memory(module.parameters(), state_size(module.build_optimizer()), 4)
    _print_memory(console, memory, "AdamW, 4 bytes a number", devices)
    console.print("defaults: " + ", ".join(f"{key}={value}" for key, value in defaults.given().items()))
    console.print(describe_machine())


def print_config_info(path: Path, devices: int = 8) -> None:
    """Describes what an experiment trains, without memory for its weights.

    Args:
        path: the experiment's YAML.
        devices: GPUs that FSDP splits the training state over.

    Raises:
        ValueError: if it does not build.
    """
    from blip3o.training.base import TrainingModule
    from blip3o.training.experiment import build_on_meta, bytes_per_number, computed_in
    from blip3o.training.optimization import state_size

    module, trainer = build_on_meta(path)
    if not isinstance(module, TrainingModule):
        raise ValueError(f"config ({path}) trains a {type(module).__name__}; info knows blip3o's training modules.")
    size = bytes_per_number(trainer)
    console = Console()
    model = getattr(module, "model", None)
    others = [_part(name, child) for name, child in module.named_children() if child is not model]
    if isinstance(model, Blip3oNext):
        _print_parts(console, str(path), [*describe_parts(model), *(part for part in others if part.num_parameters)])
        _print_image_cost(console, model, getattr(module, "generation_defaults", GenerationDefaults()))
        _print_attention(console, model, computed_in(trainer))
    else:
        _print_parts(console, str(path), others)
    memory = training_memory(module.parameters(), state_size(module.build_optimizer()), size)
    _print_memory(console, memory, f"{module.optimization.name}, {size} bytes a number", devices)
    console.print(describe_machine())


def _print_parts(console: Console, title: str, parts: list[PartInfo]) -> None:
    table = Table(title=f"blip3o {__version__}, {title}")
    for column in ("part", "class", "parameters", "trainable", "frozen", "sizes"):
        table.add_column(column, justify="right" if column in ("parameters", "trainable", "frozen") else "left")
    for part in parts:
        table.add_row(part.name, part.class_name, *_counts(part.num_parameters, part.num_trainable), part.sizes)
    total = _counts(sum(part.num_parameters for part in parts), sum(part.num_trainable for part in parts))
    table.add_row("all", "", *total, style="bold")
    console.print(table)


def _counts(parameters: int, trainable: int) -> Iterable[str]:
    return (f"{number:,}" for number in (parameters, trainable, parameters - trainable))


def _print_image_cost(console: Console, model: Blip3oNext, settings: GenerationDefaults) -> None:
    """Work for an image from text, and for an edit where the model has a way of its own to read references."""
    head = getattr(model.diffusion, "reference", None)
    edits = head is not None or model.reference_latents is not None or model.reference_features is not None
    costs = [
        image_cost(
            model,
            prompt_length=PROMPT_LENGTH,
            num_inference_steps=settings.num_inference_steps,
            guided=settings.guidance_scale != 1,
            token_guided=settings.token_guidance_scale != 1,
            num_references=references,
        )
        for references in ((0, 1) if edits else (0,))
    ]
    if any(cost is None for cost in costs):
        console.print("FLOPs of an image: not counted for these parts")
        return
    table = Table(title=f"FLOPs of an image, {PROMPT_LENGTH} prompt tokens, {settings.num_inference_steps} steps")
    table.add_column("work")
    for name in ("text to image", "edit of one image")[: len(costs)]:
        table.add_column(name, justify="right")
    for name in ("reading", "ar", "denoising", "decoding"):
        numbers = [getattr(cost, name) for cost in costs]
        if any(numbers):
            table.add_row(name, *(_scaled(number, 1000, ("", "k", "M", "G", "T", "P")) for number in numbers))
    console.print(table)


def _print_attention(console: Console, model: nn.Module, dtype: torch.dtype) -> None:
    """Kernels on this machine's GPU, or its CPU where there is none."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = describe_attention(model, device, dtype)
    if not rows:
        return
    table = Table(title=f"attention on {device.type} in {str(dtype).removeprefix('torch.')}")
    for column in ("part", "attention", "kernel", "the others"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.name, row.setting, row.kernel, row.others)
    console.print(table)


def _print_memory(console: Console, memory: TrainingMemory, how: str, devices: int) -> None:
    table = Table(title=f"training with {how}; activations, averages and buffers of communication come on top")
    table.add_column("state")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "a GPU, DDP": memory.ddp,
        f"a GPU, FSDP on {devices}": memory.fsdp(devices),
    }
    for name, number in rows.items():
        table.add_row(name, f"{number:,}", _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB")))
    console.print(table)


def _scaled(number: int, base: int, units: tuple[str, ...]) -> str:
    """A number with three digits and the largest unit that it reaches."""
    value, index = float(number), 0
    while value >= base and index < len(units) - 1:
        value, index = value / base, index + 1
    return f"{value:.3g} {units[index]}".strip()
