"""The demo, whole and small: its page holds every stage, and every picture it names exists."""

from __future__ import annotations

import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from blip3o import Blip3oPipeline
from blip3o.bridge import MLPBridge
from blip3o.demo.__main__ import main
from blip3o.demo.page import render_cell
from blip3o.demo.stages import fresh_copy, showcase, token_grid
from blip3o.shapes import SHAPES_MINI, evaluation_captions
from tests.tiny import tiny_model

VOID = {"meta", "img", "br", "link", "wbr"}


class Page(HTMLParser):
    """Collects what the tests ask about, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "img":
            self.images.append(given)
        self.links += [str(given[name]) for name in ("href", "src") if name in given]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def model_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in a folder whose name HTML would misread."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("demo") / 'a<b>&"c'))


def test_a_model_that_writes_no_tokens_has_none_to_show(tmp_path: Path) -> None:
    pipe = Blip3oPipeline(tiny_model(partial(MLPBridge, reads="prompt"), cond_grid=None))
    with pytest.raises(ValueError, match="bridge reads 'prompt', so that it writes no image tokens"):
        showcase(pipe, tmp_path, world_name="shapes-mini", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_every_stage(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    options = ["--world", "shapes-mini", "--num_captions", "6", "--train_steps", "2"]
    assert main(["--output_dir", str(out), "--model", str(model_folder), *options]) == 0

    console = capsys.readouterr().out
    assert str(out / "index.html") in console.splitlines()[-1]
    for words in ("Loading", "Drawing", "Scoring 6 captions", "Training from scratch, 2 steps"):
        assert words in console

    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.ids == ["path", "showcase", "score", "training", "parts", "times"]
    assert not [link for link in page.links if "://" in link]
    for image in page.images:
        assert (out / str(image["src"])).is_file() and image["alt"]
    tags = len(SHAPES_MINI.tags)
    # The path has two pictures, the showcase one a task, the sheet six, and there is the chart.
    assert len(page.images) == 2 + tags + 6 + 1
    assert str(model_folder) in page.text and "<b>" not in (out / "index.html").read_text(encoding="utf-8")
    captions = [*evaluation_captions(SHAPES_MINI, tags, 1), *evaluation_captions(SHAPES_MINI, 6, 0)]
    for words in (*captions, "ConvTokenizer", "FlowHead", "mean of the tasks", "95\N{NO-BREAK SPACE}% interval"):
        assert words in page.text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--num_captions", "0"], "num_captions (0) must be at least 1"),
        (["--train_steps", "0"], "train_steps (0) must be at least 1"),
        (["--seed", "-1"], "seed (-1) must be at least 0"),
        (["--model", "nonesuch"], "name_or_path (nonesuch) is unknown"),
        (["--world", "shapes"], "holds words the model does not know"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_no_page(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], told: str
) -> None:
    out = tmp_path / "demo"
    assert main(["--output_dir", str(out), "--model", str(model_folder), *args]) == 2
    assert told in capsys.readouterr().err
    assert not (out / "index.html").exists()


def test_the_training_run_starts_from_new_weights_but_keeps_tokenizer_and_codec() -> None:
    model = tiny_model()
    copy = fresh_copy(model, seed=1)
    other = copy.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("tokenizer.") or name.startswith("diffusion.codec."):
            assert torch.equal(tensor, other[name]), name
    assert not torch.equal(model.ar.head, copy.ar.head)
    assert torch.equal(copy.ar.head, fresh_copy(model, seed=1).ar.head)


def test_the_token_grid_is_in_raster_order_and_equal_ids_have_equal_colours(tiny_pipe: Blip3oPipeline) -> None:
    ids = torch.arange(16) // 2
    grid = token_grid(tiny_pipe.model, ids)
    assert grid.ids == ids.reshape(4, 4).tolist()
    flat = [color for row in grid.colors for color in row]
    assert flat[0::2] == flat[1::2] and len(set(flat)) == 8
    assert all(0 <= level <= 255 for color in flat for level in color)


def test_a_cell_s_text_stands_out_from_its_colour() -> None:
    assert "color:#000" in render_cell(7, (255, 255, 255), True) and ">7<" in render_cell(7, (255, 255, 255), True)
    assert "color:#fff" in render_cell(7, (20, 20, 60), True)
    assert "><" in render_cell(7, (20, 20, 60), False)
