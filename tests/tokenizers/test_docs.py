"""Every block of docs/tokenizers.md builds the way a run builds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from blip3o.training.tokenizer import TokenizerModule

TEXT = (Path(__file__).parents[2] / "docs/tokenizers.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def test_all_tokenizers_and_quantizers_have_a_block() -> None:
    named = set(re.findall(r"class_path: \S+\.(\w+)", TEXT))
    quantizers = {"FSQ", "SimVQ", "LFQ", "EMAVQ", "ResidualVQ"}
    assert named == quantizers | {"ConvTokenizer", "TimmTokenizer", "DiffusersVQ", "TATok"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["class_path"].rsplit(".")[-1])
def test_a_block_is_a_tokenizer_that_a_run_trains(block: dict[str, object]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TokenizerModule, "model")
    module = parser.instantiate_classes(parser.parse_object({"model": {"tokenizer": block}})).model
    assert type(module.tokenizer).__name__ == str(block["class_path"]).rsplit(".")[-1]
    assert module.tokenizer.num_tokens() > 1
