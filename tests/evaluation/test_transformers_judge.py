"""TransformersJudge with a real, if small, vision-language model and processor from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from blip3o.evaluation.answers import read_scores
from blip3o.evaluation.imgedit import ImgEdit
from blip3o.evaluation.judges import TransformersJudge
from blip3o.evaluation.judging import judge_edits
from tests.evaluation.benchmarks import imgedit_folder, question, rows_of
from tests.evaluation.small_judge import save_small_judge

DARK, BRIGHT = Image.new("RGB", (32, 32), (0, 0, 0)), Image.new("RGB", (48, 32), (255, 255, 255))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores 1, 2, 2 for a bright second picture, 5, 4, 4 for a dark one; its own settings draw at random."""
    examples = [([DARK, BRIGHT], [1, 2, 2]), ([BRIGHT, DARK], [5, 4, 4])]
    return save_small_judge(tmp_path_factory.mktemp("judges") / "small", examples, prompt="How good ?")


def test_the_words_depend_on_the_pictures_and_their_order(folder: Path) -> None:
    judge = TransformersJudge(model=str(folder))
    one, two = judge("How good ?", [DARK, BRIGHT]), judge("How good ?", [BRIGHT, DARK])
    assert read_scores(one.text, question()) == [1, 2, 2] and read_scores(two.text, question()) == [5, 4, 4]
    assert judge("How good ?", [DARK, BRIGHT]) == one
    assert one.version.startswith("qwen2_5_vl, transformers 5.")
    assert judge.id == f"{folder} through transformers"
    assert judge.settings == {"dtype": "auto", "max_new_tokens": 512}


def test_answers_end_where_they_may_not_be_longer(folder: Path) -> None:
    short = TransformersJudge(model=str(folder), max_new_tokens=3)("How good ?", [DARK, BRIGHT]).text
    whole = TransformersJudge(model=str(folder))("How good ?", [DARK, BRIGHT]).text
    assert short and short != whole and whole.startswith(short) and len(short.split()) == 3


def test_it_judges_a_benchmark(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = ImgEdit(imgedit_folder(tmp_path / "bench", ["add", "style"]))
    monkeypatch.setattr("blip3o.evaluation.imgedit.imgedit_prompt", lambda kind, instruction: "How good ?")
    for item, before, after in zip(benchmark.items, [DARK, BRIGHT], [BRIGHT, DARK], strict=True):
        before.save(tmp_path / "bench" / f"pictures/00{item.index}.jpg")
        path = tmp_path / "out" / item.output
        path.parent.mkdir(parents=True, exist_ok=True)
        after.save(path)
    summary, where = judge_edits(benchmark, tmp_path / "out", TransformersJudge(model=str(folder)))
    assert [row["given"]["edit"] for row in rows_of(where / "results.jsonl")] == [[1, 2, 2], [5, 4, 4]]
    assert summary["mean_of_items"] == pytest.approx((1 + 13 / 3) / 2)
    assert summary["types"]["style"]["mean"] == pytest.approx(13 / 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dtype": "float8"}, r"dtype \('float8'\) must be one of auto"),
        ({"max_new_tokens": 0}, r"max_new_tokens \(0\) must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TransformersJudge(model="any", **arguments)


def test_what_is_no_such_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model \(nonesuch\) is unknown; pass a folder"):
        TransformersJudge(model="nonesuch").check()
    with pytest.raises(ValueError, match=r"device \(abacus\) can not be used"):
        TransformersJudge(model=str(folder), device="abacus").check()
    with pytest.raises(ValueError, match="holds no vision-language model with a processor"):
        TransformersJudge(model=str(tmp_path)).prepare()


def test_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers by itself would leave them random, and the judge would judge by chance."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config: missing"):
        TransformersJudge(model=str(tmp_path)).prepare()


def test_half_precision_is_a_choice(folder: Path) -> None:
    judge = TransformersJudge(model=str(folder), dtype="bfloat16")
    assert read_scores(judge("How good ?", [DARK, BRIGHT]).text, question()) == [1, 2, 2]
    assert judge._loaded is not None and judge._loaded[0].dtype == torch.bfloat16
