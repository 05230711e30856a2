"""Pictures are shown as they were meant, and what can not be is refused with the reason."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.data.pictures import Limits, Unreadable, read_picture
from blip3o.pixels import as_rgb
from tests.data.pictures import BROKEN, encoded, plain

TINY = Limits(min_size=1)


def halves() -> Image.Image:
    """Red on the left, blue on the right, 4 x 2 pixels."""
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, :2, 0] = pixels[:, 2:, 2] = 255
    return Image.fromarray(pixels)


def test_pictures_are_turned_as_their_exif_tag_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    shown = np.asarray(read_picture(encoded(halves(), exif=exif), TINY))
    assert shown.shape == (4, 2, 3)
    assert (shown[:2] == [255, 0, 0]).all() and (shown[2:] == [0, 0, 255]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 102))
    shown = as_rgb(picture.convert(mode))
    assert shown.mode == "RGB"
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert shown.getpixel((1, 0)) == (153, 153, 153)


def test_a_transparent_palette_entry_is_white() -> None:
    palette = halves().quantize(2)
    blue = palette.getpixel((3, 0))
    shown = np.asarray(read_picture(encoded(palette, transparency=blue), TINY))
    assert (shown[:, :2] == [255, 0, 0]).all() and (shown[:, 2:] == 255).all()


@pytest.mark.parametrize(
    ("picture", "pixel"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 77 * 256 + 3, dtype=np.uint16)), (77, 77, 77)),
        (Image.new("P", (2, 2), 0), (0, 0, 0)),
    ],
    ids=["grey", "bilevel", "grey of 16 bits", "palette"],
)
def test_other_modes_become_rgb(picture: Image.Image, pixel: tuple[int, int, int]) -> None:
    shown = read_picture(encoded(picture), TINY)
    assert shown.mode == "RGB" and shown.getpixel((1, 1)) == pixel


def test_cmyk_becomes_rgb() -> None:
    shown = np.asarray(read_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), TINY))
    assert (np.abs(shown.astype(int) - [255, 0, 0]) < 8).all()


def test_a_photo_with_a_second_view_is_a_still() -> None:
    views = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    shown = read_picture(encoded(views[0], "MPO", save_all=True, append_images=views[1:]))
    assert shown.size == (40, 40) and shown.getpixel((5, 5))[0] > 250  # type: ignore[index]


def animated() -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "green")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def claimed(width: int, height: int) -> bytes:
    """A small PNG whose header claims another size."""
    data = bytearray(plain())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


REFUSED: dict[str, tuple[bytes | Path, Limits, str]] = {
    "missing": (Path("nowhere/a.png"), Limits(), "can not be opened: No such file"),
    "folder": (Path(), Limits(), "can not be opened: Is a directory"),
    "empty": (b"", Limits(), r"is no picture of a known kind \(JPEG, PNG"),
    "corrupt": (BROKEN, Limits(), "can not be decoded"),
    "truncated": (plain(size=(64, 64), kind="JPEG")[:-40], Limits(), "can not be decoded: .*truncated"),
    "text": (b"<html>404</html>", Limits(), r"is no picture of a known kind \(JPEG, PNG"),
    "another format": (encoded(Image.new("RGB", (40, 40)), "EPS"), Limits(), "is no picture of a known kind"),
    "animated": (animated(), Limits(), r"is animated or has several pages \(3 frames\)"),
    "too small": (plain(size=(400, 31)), Limits(), r"has 400 x 31 pixels, a side below min_size \(32\)"),
    "claims too much": (claimed(9000, 9950), Limits(), r"has 9000 x 9950 pixels, more than max_pixels"),
    "too large": (plain(size=(40, 40)), Limits(max_pixels=1599), r"40 x 40 pixels, more than max_pixels \(1599\)"),
    "bomb": (claimed(20000, 20000), Limits(), "can not be decoded: .*decompression bomb"),
    "floats": (encoded(Image.new("F", (40, 40), 0.5), "TIFF"), Limits(), "floating-point pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_shown_is_refused(case: str) -> None:
    file, limits, told = REFUSED[case]
    with pytest.raises(Unreadable, match=told):
        read_picture(file, limits)


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_size \(0\) must be at least 1"):
        Limits(min_size=0)
    with pytest.raises(ValueError, match=r"max_failures \(1.5\) must lie in \[0, 1\]"):
        Limits(max_failures=1.5)
