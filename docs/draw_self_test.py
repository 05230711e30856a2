"""Draws the two pictures of the GenEval reward's self-test, blip3o/assets/geneval/{stop_sign,clock}.png.

Run from the repository: `python docs/draw_self_test.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).parents[1] / "blip3o/assets/geneval"
SIDE, SCALE = 384, 4
FULL = SIDE * SCALE


def font(size: float) -> ImageFont.FreeTypeFont:
    """Bold letters of `size` shares of the picture's side."""
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
    return ImageFont.truetype(path, round(size * FULL))


def shaded(top: tuple[int, ...], bottom: tuple[int, ...]) -> Image.Image:
    """A vertical gradient over the whole picture."""
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), top)
    column.putpixel((0, 1), bottom)
    return column.resize((FULL, FULL), Image.Resampling.BILINEAR)


def at(*shares: float) -> tuple[float, ...]:
    """Shares of the side as pixels."""
    return tuple(share * FULL for share in shares)


def ring(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, in pixels."""
    angles = [turn + 2 * math.pi * index / corners for index in range(corners)]
    return [((x + radius * math.cos(a)) * FULL, (y + radius * math.sin(a)) * FULL) for a in angles]


def stop_sign() -> Image.Image:
    """A stop sign on its pole by a road, under the sky."""
    picture = shaded((96, 158, 222), (206, 227, 242))
    pen = ImageDraw.Draw(picture)
    pen.rectangle(at(0, 0.8, 1, 1), fill=(92, 128, 66))
    pen.polygon([at(0.55, 0.8), at(0.62, 0.8), at(1, 0.97), at(1, 1), at(0.7, 1)], fill=(96, 96, 100))
    pen.rectangle(at(0.465, 0.5, 0.505, 0.96), fill=(138, 140, 142))
    pen.rectangle(at(0.49, 0.5, 0.505, 0.96), fill=(108, 110, 112))
    for radius, fill in ((0.30, (120, 20, 24)), (0.295, (246, 246, 244)), (0.272, (190, 24, 34))):
        pen.polygon(ring(0.485, 0.38, radius, 8, math.pi / 8), fill=fill)
    pen.text(at(0.485, 0.38), "STOP", font=font(0.165), fill=(246, 246, 244), anchor="mm")
    return picture


def clock() -> Image.Image:
    """A round clock on a wall, at ten past ten."""
    picture = shaded((214, 203, 184), (190, 178, 158))
    shadow = Image.new("L", picture.size)
    ImageDraw.Draw(shadow).polygon(ring(0.52, 0.53, 0.40, 180), fill=120)
    picture.paste((110, 98, 82), mask=shadow.filter(ImageFilter.GaussianBlur(0.02 * FULL)))
    pen = ImageDraw.Draw(picture)
    for radius, fill in ((0.40, (40, 40, 44)), (0.375, (84, 84, 90)), (0.36, (250, 249, 245))):
        pen.polygon(ring(0.5, 0.5, radius, 180), fill=fill)
    for minute in range(60):
        angle, inner = math.radians(6 * minute), 0.325 if minute % 5 else 0.31
        ends = [(0.5 + r * math.sin(angle), 0.5 - r * math.cos(angle)) for r in (inner, 0.345)]
        width = round((0.004 if minute % 5 else 0.012) * FULL)
        pen.line([at(*end) for end in ends], fill=(30, 30, 34), width=width)
    for hour in range(1, 13):
        angle = math.radians(30 * hour)
        middle = at(0.5 + 0.262 * math.sin(angle), 0.5 - 0.262 * math.cos(angle))
        pen.text(middle, str(hour), font=font(0.07), fill=(30, 30, 34), anchor="mm")
    for minutes, length, thickness in ((10 * 5 + 5 / 6, 0.16, 0.022), (10, 0.25, 0.014)):
        angle = math.radians(6 * minutes)
        end = at(0.5 + length * math.sin(angle), 0.5 - length * math.cos(angle))
        pen.line([at(0.5, 0.5), end], fill=(24, 24, 28), width=round(thickness * FULL))
    pen.polygon(ring(0.5, 0.5, 0.02, 60), fill=(24, 24, 28))
    return picture


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in (stop_sign, clock):
        picture = draw().resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(FOLDER / f"{draw.__name__}.png", optimize=True)
