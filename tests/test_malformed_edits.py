"""Malformed edits: each ends in one clear error, in Python and at the command line, and leaves no file behind."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.cli import main
from blip3o.images import read_settings
from tests.data.pictures import encoded, plain
from tests.data.test_pictures import animated, claimed
from tests.test_editing import pictures, pipeline
from tests.tiny import generators

GOOD = "a red circle"
LONG = "a circle and a square and " * 40
FLOATS = encoded(Image.new("F", (40, 40), 0.5), "TIFF")


@pytest.fixture(scope="module")
def edit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that sees references in noise space; not to be changed."""
    return pipeline("width").save_pretrained(tmp_path_factory.mktemp("models") / "edits")


def opened(data: bytes) -> Image.Image:
    """As a caller would open it, its pixels not decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data))


PICTURE = pictures(1)[0]
CALLS: dict[str, tuple[Any, Any, str]] = {
    "truncated": (GOOD, opened(plain(size=(400, 400))[:-80]), r"image can not be decoded: .*truncated.*; give another"),
    "animated": (GOOD, opened(animated()), r"image is animated or has several pages \(3 frames\); give another"),
    "one pixel": (GOOD, Image.new("RGB", (1, 1)), r"image has 1 x 1 pixels, a side below min_size \(16\)"),
    "decompression bomb": (GOOD, opened(claimed(9000, 9950)), r"image has 9000 x 9950 pixels, more than max_pixels"),
    "extreme aspect": (
        GOOD,
        Image.new("RGB", (2000, 20)),
        r"has 2000 x 20 pixels, whose ratio is above 8; give .* part",
    ),
    "floating-point file": (GOOD, opened(FLOATS), r"image can not be decoded: .*floating-point pixels"),
    "empty instruction": ("", PICTURE, r"prompt \(''\) must be a string with at least one word"),
    "white space": (" \n\t", PICTURE, r"prompt \(' \\n\\t'\) must be a string with at least one word"),
    "no instruction": (None, PICTURE, r"prompt \(None\) must be a string"),
    "longer than the context": (LONG, PICTURE, "holds 96; shorten the prompt"),
    "unknown words": ("a mauve circle", PICTURE, r"holds words the model does not know: \['mauve'\]; use others"),
    "too few pictures": ([GOOD, GOOD], [PICTURE], r"for each of the 2 prompts; a list of 1 was given"),
    "one array for two": ([GOOD, GOOD], np.zeros((20, 20, 3), np.uint8), r"2 prompts; uint8, \(20, 20, 3\) was given"),
    "uneven lists": ([GOOD, GOOD], [[PICTURE], [PICTURE] * 2], r"image holds \[1, 2\] pictures; give 1 to 4, as many"),
    "five pictures": (GOOD, [PICTURE] * 5, r"image holds \[5\] pictures; give 1 to 4"),
    "two in noise space": (GOOD, [PICTURE] * 2, r"reference='width' takes one; give one, or build the model with"),
    "None among pictures": ([GOOD, GOOD], [PICTURE, None], r"image\[1\]\[0\] \(None\) must be a PIL image, an array"),
    "a path": (GOOD, "in.png", r"image \('in.png'\) must be a PIL image.*; open a file with PIL.Image.open"),
    "wrong dtype": (GOOD, np.zeros((20, 20, 3), np.int64), r"image \(int64, \(20, 20, 3\)\) must hold uint8 or floats"),
    "words for pixels": (GOOD, np.full((20, 20, 3), "red"), r"image \(<U3, \(20, 20, 3\)\) must hold uint8 or floats"),
    "complex tensor": (GOOD, torch.zeros(3, 20, 20, dtype=torch.complex64), r"\(torch.complex64, .* must hold uint8"),
    "NaN": (
        GOOD,
        torch.full((3, 20, 20), torch.nan),
        r"\(torch.float32, \(3, 20, 20\)\) holds NaN or infinite numbers",
    ),
    "infinite": (
        GOOD,
        np.full((20, 20, 3), np.inf),
        r"image \(float64, .*holds NaN or infinite numbers; give floats in",
    ),
    "out of range": (
        GOOD,
        torch.linspace(-1, 1, 1200).reshape(3, 20, 20),
        r"holds numbers from -1 to 1; give floats in",
    ),
    "wrong channels": (GOOD, torch.zeros(5, 20, 20), r"\(5, 20, 20\)\) must be a tensor \(3, H, W\), or have 1 or 4"),
    "channels first": (GOOD, np.zeros((3, 20, 20), np.uint8), r"\(3, 20, 20\)\) must be an array \(H, W, 3\), or"),
    "no pixels": (GOOD, np.zeros((0, 20, 3), np.uint8), r"image \(uint8, \(0, 20, 3\)\) must be an array"),
    "a number": (GOOD, np.float32(3), r"must be a PIL image"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_malformed_call_ends_in_a_clear_error_and_draws_nothing(case: str) -> None:
    prompt, image, told = CALLS[case]
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match=told) as error:
        pipeline("width")(prompt, image=image, generator=generator)
    assert len(str(error.value)) < 400 + len(str(prompt))
    assert torch.equal(before, generator.get_state())


def test_a_model_without_references_says_that_it_was_not_made_to_edit(tiny_pipe: Blip3oPipeline) -> None:
    with pytest.raises(ValueError, match=r"not made to edit: its text tokenizer lacks \['Please', .*; leave image out"):
        tiny_pipe(GOOD, image=PICTURE)
    with pytest.raises(ValueError, match="not made to edit"):
        tiny_pipe("make it mauve", image=PICTURE)


FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "image (in.png) can not be opened: No such file or directory; give another picture."),
    "empty": (b"", "image (in.png) is no picture of a known kind (JPEG, PNG"),
    "text": (b"not a picture\n", "image (in.png) is no picture of a known kind (JPEG, PNG"),
    "truncated": (plain(size=(400, 400))[:-80], "image (in.png) can not be decoded: "),
    "animated": (animated(), "image (in.png) is animated or has several pages (3 frames); give another"),
    "one pixel": (plain(size=(1, 1)), "image (in.png) has 1 x 1 pixels, a side below min_size (16)"),
    "decompression bomb": (claimed(20000, 20000), "image (in.png) can not be decoded: Image size (400000000 pixels)"),
    "large header": (claimed(9000, 9950), "image (in.png) has 9000 x 9950 pixels, more than max_pixels"),
    "extreme aspect": (plain(size=(2000, 20)), "image has 2000 x 20 pixels, whose ratio is above 8"),
    "floating-point file": (FLOATS, "image (in.png) can not be decoded: image holds floating-point pixels"),
}
USAGE: dict[str, tuple[list[object], str]] = {
    "empty instruction": ([""], "prompt ('') must be a string with at least one word"),
    "white space": ([" \t"], "prompt (' \\t') must be a string with at least one word"),
    "longer than the context": ([LONG], "shorten the prompt"),
    "unknown words": (["a mauve circle"], "holds words the model does not know: ['mauve']"),
    "folder as picture": ([GOOD, "--image", "."], "image (.) can not be opened: Is a directory"),
    "second picture missing": ([GOOD, "--image", "b.png"], "image (b.png) can not be opened: No such file"),
    "two in noise space": ([GOOD, "--image", "in.png"], "reference='width' takes one; give one, or build"),
    "no image count": ([GOOD, "--num_images", 0], "num_images (0) must be at least 1"),
    "negative scale": ([GOOD, "--image_guidance_scale", -1], "image_guidance_scale (-1.0) must be at least 0"),
    "scale of words": ([GOOD, "--image_guidance_scale", "much"], "--image_guidance_scale: invalid float value: 'much'"),
    "unknown aspect": ([GOOD, "--aspect", "wide"], "argument --aspect: invalid choice: 'wide'"),
    "output without a folder": ([GOOD, "--output", "no/out.png"], "output (no/out.png) lies in a folder that does not"),
    "output of another kind": ([GOOD, "--output", "out.jpg"], "output (out.jpg) must end in .png"),
    "output is a folder": ([GOOD, "--output", "folder.png"], "output (folder.png) is a folder; name a file in it"),
}


@pytest.fixture
def edit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit_folder: Path
) -> Callable[..., tuple[object, str, str]]:
    """Runs `blip3o edit in.png ...` in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object, model: Path = edit_folder, picture: str = "in.png") -> tuple[object, str, str]:
        try:
            code: object = main(["edit", picture, *map(str, args), "--model", str(model)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


Edit = Callable[..., tuple[object, str, str]]


def assert_refused(result: tuple[object, str, str], told: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "") and "Traceback" not in err
    assert told in err.splitlines()[-1] and err.splitlines()[-1].startswith("blip3o edit: ")


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file_is_refused_by_the_command(edit: Edit, tmp_path: Path, case: str) -> None:
    data, told = FILES[case]
    if data is not None:
        (tmp_path / "in.png").write_bytes(data)
    before = {path.name for path in tmp_path.iterdir()}
    assert_refused(edit(GOOD, "--output", "out.png"), told)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_of_the_command_is_refused(edit: Edit, tmp_path: Path, case: str) -> None:
    args, told = USAGE[case]
    (tmp_path / "in.png").write_bytes(encoded(PICTURE))
    (tmp_path / "folder.png").mkdir()
    assert_refused(edit(*args), told)
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", "folder.png"}


def test_the_command_refuses_a_model_without_references(edit: Edit, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(encoded(PICTURE))
    assert_refused(edit(GOOD, model=tiny_folder), "this model was not made to edit: its text tokenizer lacks")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be shown turned by 90 degrees
MODES: dict[str, bytes] = {
    **{mode: encoded(PICTURE.convert(mode)) for mode in ("RGB", "RGBA", "P", "L", "LA", "1")},
    "CMYK": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)),
    "turned": encoded(PICTURE, exif=TURNED),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_file_is_edited_as_the_picture_it_shows(edit: Edit, tmp_path: Path, mode: str) -> None:
    (tmp_path / "in.png").write_bytes(MODES[mode])
    assert edit(GOOD, "--seed", 5, "--image_guidance_scale", 1.5)[:2] == (0, "out.png\n")
    written = Image.open(tmp_path / "out.png")
    [expected] = pipeline("width")(
        GOOD, image=opened(MODES[mode]), generator=generators(1, 5), image_guidance_scale=1.5
    ).images
    assert written.size == ((36, 30) if mode == "turned" else (30, 36))
    assert np.array_equal(np.asarray(written), np.asarray(expected))
    settings = read_settings(tmp_path / "out.png")
    assert (settings["image"], settings["prompt"], settings["seed"]) == (["in.png"], GOOD, 5)
    assert (settings["aspect"], settings["image_guidance_scale"], settings["top_k"]) == ("keep", 1.5, 0)


def test_several_pictures_and_edits_are_written_together(edit: Edit, tmp_path: Path) -> None:
    model = pipeline("latents").save_pretrained(tmp_path / "model")
    for name, picture in zip(("in.png", "b.png"), pictures(2), strict=True):
        picture.save(tmp_path / name)
    code, out, _ = edit(GOOD, "--image", "b.png", "--num_images", 2, "--aspect", "square", model=model)
    assert (code, out) == (0, "out-0.png\nout-1.png\n")
    images = pipeline("latents")(
        GOOD, image=pictures(2), num_images_per_prompt=2, generator=generators(2), aspect="square"
    ).images
    for number, image in enumerate(images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out-{number}.png")), np.asarray(image))
    assert read_settings(tmp_path / "out-1.png")["image"] == ["in.png", "b.png"]


def test_an_input_is_replaced_only_where_it_is_named(edit: Edit, tmp_path: Path) -> None:
    for name in ("out.png", "out-1.png", "a.png"):
        PICTURE.save(tmp_path / name)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(
        edit(GOOD, picture="out.png"), "output (out.png) would replace an input picture; name that very file"
    )
    assert_refused(
        edit(GOOD, "--output", "out.png", "--num_images", 2, picture="out-1.png"), "output (out-1.png) would replace"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert edit(GOOD, "--output", "a.png", picture="a.png")[0] == 0
    assert read_settings(tmp_path / "a.png")["image"] == ["a.png"]
    (tmp_path / "link.png").symlink_to("a.png")
    edited = (tmp_path / "a.png").read_bytes()
    assert edit(GOOD, "--output", "link.png", picture="a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes() == edited, "the link is replaced, not what it leads to"


def test_a_failure_to_write_the_second_edit_leaves_none(
    edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PICTURE.save(tmp_path / "in.png")
    (tmp_path / "out-0.png").write_bytes(b"kept")
    save, calls = Image.Image.save, []

    def fail(self: Image.Image, path: Path, **arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError("no space left")
        save(self, path, **arguments)

    monkeypatch.setattr(Image.Image, "save", fail)
    code, out, err = edit(GOOD, "--num_images", 2)
    assert (code, out, err) == (1, "", "blip3o edit: no space left\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out-0.png"]
    assert (tmp_path / "out-0.png").read_bytes() == b"kept"


def test_after_all_of_them_an_edit_is_what_it_was() -> None:
    def good() -> bytes:
        return pipeline("width")(GOOD, image=PICTURE, generator=generators(1)).images[0].tobytes()

    before = good()
    for prompt, image, _ in CALLS.values():
        with pytest.raises(ValueError):
            pipeline("width")(prompt, image=image)
    assert good() == before
