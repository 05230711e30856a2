"""What `blip3o info` prints: the parts of a model and the machine it runs on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from blip3o import __version__
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline


@dataclass(frozen=True)
class PartInfo:
    """One part of a model: its name in the model, its class, how many parameters it has, and its notable sizes."""

    name: str
    class_name: str
    num_parameters: int
    sizes: str


def describe_parts(model: Blip3oNext) -> list[PartInfo]:
    """The parts of a model."""
    sizes = {
        "tokenizer": f"{model.tokenizer.num_tokens()} tokens an image, {model.tokenizer.codebook_size} codes",
        "ar": f"hidden size {model.ar.hidden_size}, context {model.ar.context_length}",
        "bridge": f"{model.bridge.in_features} to {model.bridge.out_features} features",
        "diffusion": f"condition width {model.diffusion.cond_dim}",
    }
    parts = []
    for name, module in model.parts().items():
        told = sizes.get(name) or f"{module.in_features} to {module.out_features} features"
        count = sum(p.numel() for p in module.parameters())
        parts.append(PartInfo(name, type(module).__name__, count, told))
    return parts


def describe_machine() -> str:
    """Versions and devices in one line."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores, "
        f"accelerator: {accelerator}"
    )


def print_info(pipe: Blip3oPipeline, name: str) -> None:
    """Prints class, parameters and notable sizes of every part, the defaults, versions and devices."""
    table = Table(title=f"blip3o {__version__}, model {name}")
    for column in ("part", "class", "parameters", "sizes"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for part in describe_parts(pipe.model):
        table.add_row(part.name, part.class_name, f"{part.num_parameters:,}", part.sizes)
    console = Console()
    console.print(table)
    console.print("defaults: " + ", ".join(f"{key}={value}" for key, value in vars(pipe.defaults).items()))
    console.print(describe_machine())
