"""PromptDataModule: every prompt once a pass, in an order of the seed, whatever the processes and restarts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from blip3o.data.prompts import PromptDataModule, read_prompts
from tests.data.pictures import write_jsonl

GENEVAL = [
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    {"tag": "colors", "include": [{"class": "cup", "color": "red"}], "exclude": [], "prompt": "a red cup\u2028"},
]


def data(tmp_path: Path, count: int = 10, **arguments: Any) -> PromptDataModule:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {i}\n\n" for i in range(count)))
    return PromptDataModule(**{"file": str(path), "batch_size": 4, "seed": 2, **arguments})


def prompts(module: PromptDataModule, count: int) -> list[str]:
    return [prompt for batch in islice(iter(module.train_dataloader()), count) for prompt in batch["prompt"]]


def test_each_pass_holds_every_prompt_once_in_its_own_order(tmp_path: Path) -> None:
    found = prompts(data(tmp_path), 5)
    first, second = found[:10], found[10:]
    assert sorted(first) == sorted(second) == [f"prompt {i}" for i in range(10)]
    assert first != second and first != sorted(first)
    assert found == prompts(data(tmp_path), 5) != prompts(data(tmp_path, seed=3), 5)


def test_batches_hold_indices_and_metadata(tmp_path: Path) -> None:
    module = data(tmp_path, file=str(write_jsonl(tmp_path / "g.jsonl", GENEVAL)), batch_size=3)
    batch = next(iter(module.train_dataloader()))
    assert batch["index"].tolist() == [0, 1, 2]
    assert sorted(batch["prompt"]) == ["a dog", "a red cup", "two cats"]
    for prompt, metadata in zip(batch["prompt"], batch["metadata"], strict=True):
        assert metadata in GENEVAL and metadata["prompt"].strip() == prompt


def test_a_resumed_module_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    whole = prompts(data(tmp_path), 6)
    module = data(tmp_path)
    module.load_state_dict({"batches_seen": 4})
    assert prompts(module, 2) == whole[16:]
    assert module.state_dict() == {"batches_seen": 0}, "no trainer has run"


def test_validation_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "val.jsonl", GENEVAL)
    module = data(tmp_path, val_file=str(held_out), batch_size=2)
    for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        assert [prompt for batch in loader for prompt in batch["prompt"]] == ["two cats", "a dog", "a red cup"]
    assert data(tmp_path).val_dataloader() == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', r"line 2 has no text in 'prompt' \(\['text'\]\); name the key"),
        ("a.jsonl", '{"prompt": "x"\n', "line 1 is no JSON"),
        ("a.jsonl", "3\n", "line 1 has no text in 'prompt'"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1 has no text in 'prompt'"),
        ("none.txt", None, "can not be read as text"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        read_prompts(tmp_path / name)


def test_files_are_read_when_a_run_is_set_up(tmp_path: Path) -> None:
    module = PromptDataModule(file=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="can not be read as text"):
        module.setup("fit")


def test_another_key_can_hold_the_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "y", "n": 1}])
    assert read_prompts(path, "text") == [("y", {"text": "y", "n": 1})]
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be at least 1"):
        data(tmp_path, batch_size=0)
