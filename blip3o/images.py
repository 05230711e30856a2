"""Writing pictures: whole or not at all, with the settings that made them; sheets of many."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

METADATA_KEY = "blip3o"


def check_output(path: Path) -> None:
    """Raises a ValueError unless a PNG can be written at `path`."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"output ({path}) must end in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"output ({path}) lies in a folder that does not exist; create {path.parent} first.")
    if path.is_dir():
        raise ValueError(f"output ({path}) is a folder; name a file in it.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"output ({path}) lies in a folder that is not yours to write; choose another.")


def numbered(path: Path, count: int) -> list[Path]:
    """`count` paths: `path` itself for one, else `name-0.png`, `name-1.png`, ..."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def check_kept(path: Path, inputs: Sequence[Path]) -> None:
    """Raises a ValueError where writing at `path` would replace one of the input pictures, which nobody asked for."""
    for one in inputs:
        if path.exists() and one.exists() and path.samefile(one):
            raise ValueError(
                f"output ({path}) would replace an input picture; name that very file by --output, or another."
            )


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a PNG whose text chunk `blip3o` holds `settings` as JSON, through a file that is renamed when whole."""
    save_pngs([(image, path, settings)])


def save_pngs(pictures: Sequence[tuple[Image.Image, Path, Mapping[str, Any]]]) -> None:
    """Writes PNGs, each with its path and its settings, as `save_png` does; none is renamed before all are whole."""
    partials = [path.with_name(f".{path.name}.{os.getpid()}.part") for _, path, _ in pictures]
    try:
        for (image, _, settings), partial in zip(pictures, partials, strict=True):
            info = PngInfo()
            info.add_text(METADATA_KEY, json.dumps(settings, sort_keys=True))
            image.save(partial, format="PNG", pnginfo=info)
        for (_, path, _), partial in zip(pictures, partials, strict=True):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_png` wrote.

    Raises:
        ValueError: if the picture holds none.
    """
    with Image.open(path) as image:
        text = image.info.get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} holds no settings; only pictures that blip3o wrote do.")
    return dict(json.loads(text))


def contact_sheet(
    images: np.ndarray, captions: Sequence[str] | None = None, *, columns: int = 8, scale: int = 1, gap: int = 2
) -> Image.Image:
    """Images (B, H, W, 3) uint8 side by side.

    Args:
        images: the pictures.
        captions: a text under each, on white; without them the sheet is grey.
        columns: pictures a row.
        scale: whole factor by which the pictures are enlarged.
        gap: pixels between them.
    """
    count, height, width = len(images), images.shape[1] * scale, images.shape[2] * scale
    texts = [textwrap.fill(text, max(8, width // 6)) for text in captions or []]
    line_height, pad = 12, gap if captions is None else 12
    foot = line_height * max((text.count("\n") + 1 for text in texts), default=0) + (4 if texts else 0)
    rows = -(-count // columns)
    size = (columns * (width + pad) + pad, rows * (height + foot + pad) + pad)
    sheet = Image.new("RGB", size, (128, 128, 128) if captions is None else (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for index, pixels in enumerate(images):
        left, top = pad + index % columns * (width + pad), pad + index // columns * (height + foot + pad)
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        if texts:
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=(200, 200, 200))
            pen.multiline_text((left, top + height + 3), texts[index], fill=(40, 40, 40), spacing=1)
    return sheet
