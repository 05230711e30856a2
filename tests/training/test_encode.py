"""Encoding an experiment's rows and training on them: the same losses, whole or not finished, mismatches told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, Trainer

from blip3o.ablation.merge import override
from blip3o.bridge import MLPBridge
from blip3o.cli import main
from blip3o.data import shard_writer
from blip3o.data.encoded import EncodedDataModule
from blip3o.data.shapes import ShapesDataModule
from blip3o.data.shards import read_index
from blip3o.diffusion import PixelCodec, TokenDecoderHead
from blip3o.diffusion.codecs import Codec
from blip3o.model import Blip3oNext
from blip3o.tokenizers import FSQ, ConvTokenizer
from blip3o.training.callbacks import ShapesScore
from blip3o.training.cli import build
from blip3o.training.codec import CodecModule
from blip3o.training.encode import encode_data
from blip3o.training.fingerprint import check_encoders
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from blip3o.training.mixed import mixed_losses
from blip3o.training.quiet import quiet
from tests.tiny import PLAIN, generators, tiny_ar, tiny_tokenizer

ROOT = Path(__file__).parents[2]
MINI = ROOT / "experiments/shapes/mini.yaml"
DYING = """
import sys
from pathlib import Path
from tests.training.test_encode import dies_at, encode_data, shard_writer
shard_writer.tarfile.TarInfo = dies_at(13)
encode_data(Path(sys.argv[1]), Path(sys.argv[2]), num_rows=12, shard_size=5)
"""
"""A process that dies without a chance to tidy up, within its second shard."""

DECODER = {"class_path": "blip3o.diffusion.TokenDecoderHead", "init_args": {"image_size": 32}}
DATA = {"data.batch_size": 4, "data.num_val": 6, "data.num_prompts": 3, "model.num_inference_steps": 2}


def values(**changes: Any) -> dict[str, Any]:
    """mini.yaml with small data, and with `changes` by dotted keys."""
    return override(yaml.safe_load(MINI.read_text()), DATA | {k.replace("__", "."): v for k, v in changes.items()})


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows of mini.yaml in shards of five."""
    place = tmp_path_factory.mktemp("encoded")
    encode_data(write(place / "mini.yaml", values()), place / "data", num_rows=12, shard_size=5)
    return place / "data"


def encoded(folder: Path, **arguments: Any) -> EncodedDataModule:
    return EncodedDataModule(folder=folder, **{"batch_size": 4, "shuffle": False, **arguments})


def live() -> ShapesDataModule:
    return ShapesDataModule(world="shapes-mini", batch_size=4, num_val=6, num_prompts=3)


def module() -> JointModule:
    """What `blip3o fit` would train, from the weights of the seed."""
    built = build(values()).model
    assert isinstance(built, JointModule)
    return built


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tokenizer nor codec encodes."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(ConvTokenizer, "encode", refuse)
    monkeypatch.setattr(Codec, "encode", refuse)


def test_losses_of_encoded_rows_are_those_of_their_pictures(folder: Path) -> None:
    model = module().model
    for pictures, codes in islice(zip(live().train_dataloader(), encoded(folder).train_dataloader(), strict=True), 3):
        assert pictures["caption"] == codes["caption"] and torch.equal(pictures["index"], codes["index"])
        assert "image" not in codes
        results = [
            mixed_losses(
                model,
                batch,
                batch["caption"],
                supervise="all",
                rendered_rows=torch.tensor([0, 2, 3]),
                dropped=torch.tensor([False, True, False]),
                generator=generators(3),
            )
            for batch in (pictures, codes)
        ]
        for name in ("cross_entropy", "num_tokens", "flow"):
            torch.testing.assert_close(getattr(results[1], name), getattr(results[0], name), rtol=1e-6, atol=1e-6)


def test_training_takes_the_same_steps_without_an_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    expected = fit_steps(module(), live(), num_steps=3)
    request.getfixturevalue("no_encoders")
    found = fit_steps(module(), encoded(folder), num_steps=3)
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def validated(data: Any) -> dict[str, float]:
    with quiet(everything=True):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[ShapesScore("shapes-mini", sheet=0)],
        )
        scores = [
            trainer.validate(module(), datamodule=data, verbose=False),
            trainer.test(module(), data, verbose=False),
        ]
    return {name: value for (result,) in scores for name, value in result.items()}


def test_validation_and_test_score_as_on_pictures(folder: Path, request: pytest.FixtureRequest) -> None:
    expected = validated(live())
    request.getfixturevalue("no_encoders")
    found = validated(encoded(folder))
    assert {"val/flow", "val/cross_entropy", "val/score", "test/flow"} <= expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)


class SaveTwo(Callback):
    """Saves a checkpoint after step 2."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint("2.ckpt")


def trained(folder: Path, checkpoint: str | None = None) -> dict[str, torch.Tensor]:
    """Weights after five steps of three rows, in a shuffled order."""
    model = module()
    with quiet(everything=True):
        trainer = Trainer(
            max_steps=5,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[SaveTwo()],
        )
        trainer.fit(model, datamodule=encoded(folder, shuffle=True, batch_size=3), ckpt_path=checkpoint)
    return model.state_dict()


def test_a_resumed_run_ends_with_the_same_weights(folder: Path) -> None:
    """The end of the first epoch, of twelve rows, lies behind the checkpoint."""
    expected, found = trained(folder), trained(folder, "2.ckpt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_killed_encode_looks_unfinished_and_is_finished_by_the_same_call(folder: Path, tmp_path: Path) -> None:
    config, out = write(tmp_path / "mini.yaml", values()), tmp_path / "data"
    ended = subprocess.run([sys.executable, "-c", DYING, str(config), str(out)], cwd=ROOT, capture_output=True)
    assert ended.returncode == 3, ended.stderr.decode()
    assert [path.name for path in out.glob("*.tar")] == ["train-000000.tar"] and list(out.glob(".*.part"))
    with pytest.raises(ValueError, match="is not encoded to its end"):
        encoded(out)
    before = (out / "train-000000.tar").stat().st_mtime_ns
    encode_data(config, out, num_rows=12, shard_size=5)
    assert (out / "train-000000.tar").stat().st_mtime_ns == before, "a finished shard was written again"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    assert all((folder / name).read_bytes() == (out / name).read_bytes() for name in names)


def dies_at(count: int) -> Callable[[str], Any]:
    """A stand-in for `tarfile.TarInfo` at whose call number `count` the process ends."""
    real, calls = shard_writer.tarfile.TarInfo, iter(range(count))

    def made(name: str) -> Any:
        if next(calls, None) is None:
            os._exit(3)
        return real(name)

    return made


def test_a_finished_folder_is_left_as_it_is_and_other_arguments_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "mini.yaml", values())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    words = ["data", "encode", str(config), "--output_dir", str(folder), "--shard_size", "5"]
    assert main([*words, "--num_rows", "12"]) == 0 and "is encoded already" in capsys.readouterr().out
    assert main([*words, "--num_rows", "13"]) == 2 and "was encoded with other num_rows" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_command_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.yaml", values(data__num_val=2))
    words = ["data", "encode", "run.yaml", "--output_dir", "data", "--num_rows", "5", "--dtype", "bfloat16"]
    assert main(words) == 0
    assert "written to data: 5 train, 2 val, 2 test rows" in capsys.readouterr().out
    index = read_index("data")
    assert (index.num_tokens, index.latent_shape, index.dtype) == (16, [48, 8, 8], "bfloat16")
    assert (index.world, index.image_size, len(index.prompts)) == ("shapes-mini", 32, 3)
    data = {"class_path": "blip3o.data.encoded.EncodedDataModule", "init_args": {"folder": "data", "batch_size": 2}}
    write(tmp_path / "train.yaml", {**values(), "data": data})
    more = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "train.yaml", *more, "--trainer.callbacks", "null"]) == 0
    assert main(["fit", "--config", "train.yaml", *more, "--seed_everything", "1"]) == 2
    assert "was encoded by another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "more", "told"),
    [
        ({}, [], "num_rows is missing: the rows of ShapesDataModule need not end"),
        ({}, ["--num_rows", "0"], "num_rows (0) must be at least 1"),
        ({}, ["--num_rows", "2", "--shard_size", "0"], "shard_size (0) must be at least 1"),
        ({}, ["--num_rows", "2", "--dtype", "int8"], "dtype (int8) must be one of float32, bfloat16, float16"),
        ({"data__world": "shapes"}, ["--num_rows", "2"], "the diffusion head's image_size is 32; make them one"),
        (
            {
                "model__model__diffusion": {
                    "class_path": "blip3o.diffusion.TokenDecoderHead",
                    "init_args": {"image_size": 32},
                }
            },
            ["--num_rows", "2"],
            "diffusion (TokenDecoderHead) needs pixels",
        ),
        (
            {"data": {"class_path": "blip3o.data.shapes_prompts.ShapesPromptsDataModule"}},
            ["--num_rows", "2"],
            "without",
        ),
    ],
)
def test_wrong_usage_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], more: list[str], told: str
) -> None:
    config = write(tmp_path / "run.yaml", values(**changes))
    assert main(["data", "encode", str(config), "--output_dir", str(tmp_path / "data"), *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "data/index.json").exists()


def test_a_call_that_wrote_no_row_leaves_the_folder_to_another(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", values(data__num_val=1))
    with pytest.raises(ValueError, match="num_rows is missing"):
        encode_data(config, tmp_path / "data")
    assert encode_data(config, tmp_path / "data", num_rows=3).num_rows["train"] == 3


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", values())
    with pytest.raises(ValueError, match="holds files that are no encoded data"):
        encode_data(config, tmp_path, num_rows=2)
    with pytest.raises(ValueError, match=r"run.yaml\) is a file"):
        encode_data(config, config, num_rows=2)


def test_a_model_with_other_encoders_is_refused_before_it_trains(folder: Path) -> None:
    index, model = read_index(folder), module().model
    check_encoders(index, model)

    def refused(told: str) -> Any:
        return pytest.raises(ValueError, match=told)

    with refused(r"another tokenizer than the model's ConvTokenizer: weights with sha256 .* encode the data again"):
        changed = module()
        changed.model.tokenizer.encoder[0].weight.data[0] += 1e-3
        fit_steps(changed, encoded(folder), num_steps=1)
    with refused(r"another tokenizer .*: quantizer.levels is \[4, 4, 4\] there, \[8, 8\] here"):
        model.tokenizer = ConvTokenizer(FSQ([8, 8]), image_size=32, width=32, encoder_depth=1, decoder_depth=1)
        check_encoders(index, model)
    with refused(r"another codec than the model's PixelCodec: patch_size is 4 there, 2 here"):
        model = module().model
        model.diffusion.codec = PixelCodec(2)
        check_encoders(index, model)
    with refused(r"pictures of 32 pixels a side, but the diffusion head's image_size is 64"):
        model = module().model
        model.diffusion.image_size = 64
        check_encoders(index, model)


def test_a_tokenizer_that_is_not_read_may_be_another(folder: Path) -> None:
    model = module().model
    model.tokenizer = tiny_tokenizer(seed=5)
    model.bridge.reads = "prompt"
    check_encoders(read_index(folder), model)


def test_modules_and_heads_that_need_pixels_say_so(folder: Path) -> None:
    with pytest.raises(ValueError, match="CodecModule trains on pictures, and EncodedDataModule has none"):
        fit_steps(CodecModule(PixelCodec(4)), encoded(folder), num_steps=1)
    model = Blip3oNext(tiny_tokenizer(), tiny_ar(), MLPBridge, TokenDecoderHead(image_size=32), PLAIN)
    with pytest.raises(ValueError, match=r"diffusion \(TokenDecoderHead\) needs pixels"):
        fit_steps(JointModule(model), encoded(folder), num_steps=1)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs leave their files in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    yield
