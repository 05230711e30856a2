"""`generate_many`: a picture, or several, for each of many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip3o.bulk.folder import BulkFolder
from blip3o.bulk.overlap import two_stages
from blip3o.bulk.progress import progress
from blip3o.bulk.prompts import Picture, Prompt, batches, pictures_of, refuse
from blip3o.diffusion.attention import TorchAttention
from blip3o.model import Blip3oNext
from blip3o.pipeline import Blip3oPipeline
from blip3o.pixels import to_uint8
from blip3o.rendering import render
from blip3o.settings import check_settings, check_whole
from blip3o.structures import Generated

Half = tuple[Generated, list[torch.Generator]]


def generate_many(
    pipe: Blip3oPipeline,
    prompts: Sequence[str | Prompt],
    output_dir: str | Path,
    *,
    model_name: str = "",
    num_images: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    overlap: bool = True,
    **settings: Any,
) -> int:
    """Makes the pictures of many prompts that are not there yet, one PNG each.

    Writes every picture whole or not at all, with its settings inside as `blip3o generate` does; `images.jsonl`, a line
    a picture with its prompt, seed, file, settings and the prompt's own fields; and `generation.json`, what decides the
    pictures. A run that was stopped, however hard, goes on by the same call, and ends with the same files, byte for
    byte on the same machine: each picture has a generator of its own, and a batch of which a picture is missing is made
    again as a whole.

    Args:
        pipe: the pipeline.
        prompts: what to draw; `read_prompts` reads them from a file.
        output_dir: where to write; created if missing.
        model_name: recorded.
        num_images: pictures of each prompt.
        seed: picture j of prompt i is drawn with `seed + i * num_images + j`, where the prompt names no seed.
        batch_size: pictures generated at a time. Rounding depends on it, so it is one of the settings that must stay.
        overlap: whether the next batch's tokens are written while the last batch is rendered, for which a GPU has
            room; the pictures are the same either way.
        settings: arguments of the pipeline's call, from `num_inference_steps` to `jacobi_window`; None is its default.

    Returns:
        How many pictures were made now.

    Raises:
        ValueError: on a value out of range, prompts that can not be drawn, or if `output_dir` holds pictures made
            otherwise; nothing has been generated then.
    """
    check_whole("num_images", num_images, 1)
    check_whole("batch_size", batch_size, 1)
    if settings.get("image_guidance_scale") is not None:
        raise ValueError("image_guidance_scale is about edits, and these are none; leave it out.")
    used = pipe.defaults.updated(**settings)
    check_settings(used)
    used = replace(used, image_guidance_scale=None)
    pipe.model.diffusion.check_rendering(guidance_interval=used.guidance_interval, step_cache=used.step_cache)
    pipe.model.ar.check_sampling(used.sampling)
    pictures = _checked(pipe.model, prompts, num_images, seed)
    own = next(pipe.model.diffusion.parameters(), torch.empty(0))
    record = {
        "model": model_name,
        "seed": seed,
        "num_images": num_images,
        "batch_size": batch_size,
        "device": pipe.model.device.type,
        "dtype": str(own.dtype).removeprefix("torch."),
        "settings": used.given(),
    }
    folder = BulkFolder(Path(output_dir), pictures, record)

    def write(batch: Sequence[Picture]) -> Half:
        generators = [torch.Generator().manual_seed(one.seed) for one in batch]
        captions = [one.prompt for one in batch]
        return pipe.model.write(captions, generator=generators, **used.writing()), generators

    @torch.no_grad()
    def draw(batch: Sequence[Picture], half: Half) -> list[Image.Image]:
        tokens, generators = half
        latents = render(pipe.model, tokens, generator=generators, **used.rendering()).latents
        return [Image.fromarray(array) for array in to_uint8(pipe.model.diffusion.decode(latents))]

    made, overlap = 0, overlap and _renders_apart(pipe.model)
    with folder.opened(), progress(len(folder.missing(pictures))) as advance:
        open_batches = (batch for batch in batches(pictures, batch_size) if folder.missing(batch))
        for batch, images in two_stages(open_batches, write, draw, device=pipe.model.device, overlap=overlap):
            missing = folder.missing(batch)
            folder.save([(batch[place], images[place]) for place in missing])
            made += len(missing)
            advance(len(missing))
    return made


def _renders_apart(model: Blip3oNext) -> bool:
    """Whether rendering leaves torch's choice of attention kernels alone, which is the whole process's."""
    parts = (part for part in model.diffusion.modules() if isinstance(part, TorchAttention))
    return all(part.attention in ("auto", "sdpa") for part in parts)


def _checked(model: Blip3oNext, given: Sequence[str | Prompt], num_images: int, seed: int) -> list[Picture]:
    """The pictures of prompts, all of which the model can draw."""
    if not given:
        raise ValueError("prompts ([]) must hold at least one prompt.")
    prompts = [one if isinstance(one, Prompt) else Prompt(one) for one in given]
    prompts = [one if one.place else replace(one, place=f"number {number}") for number, one in enumerate(prompts)]
    pictures, faults = pictures_of(prompts, num_images=num_images, seed=seed)
    refuse(faults, "prompts")
    refuse(_unfit(model, prompts), "prompts")
    return pictures


def _unfit(model: Blip3oNext, prompts: Sequence[Prompt]) -> Iterator[str]:
    """What a model can not draw: prompts of words that it does not know, or too long for its context."""
    decoded = model.tokenizer.num_tokens() if model.bridge.needs_tokens else model.bridge.num_queries or 0
    room = model.ar.context_length - decoded
    for one in prompts:
        if unknown := model.sequences.unknown_words(one.prompt):
            yield f"{one.place} holds words the model does not know: {unknown}"
        length = model.sequences.prompts([one.prompt])[0].shape[1]
        if length > room:
            yield f"{one.place} has {length} tokens, more than the {room} that the model's context has room for"
