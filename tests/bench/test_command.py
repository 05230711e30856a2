"""The command: what it prints and writes, rows of data, and how long processes take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blip3o.bench.data import bench_data
from blip3o.bench.startup import bench_startup, own_commands
from blip3o.cli import build_parser, main

MINI = Path(__file__).parents[2] / "experiments/shapes/mini.yaml"


def test_generate_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    assert main(["bench", "generate", "--shape", "nano", "--repeats", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "generate, nano" in printed and "times as fast as" in printed and "greedy ids equal" in printed
    found = json.loads(output.read_text())
    assert found["baseline"] == "released procedure" and found["notes"]["decoding"]["share_of_the_limit"] > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["generate", "--repeats", "0"], "repeats (0) must be at least 1"),
        (["train", "--batch_size", "-1"], "batch_size (-1) must be at least 1"),
        (["data", "--config", "none.yaml"], "config (none.yaml) can not be read"),
        (["startup", "--output", "none/x.json"], "output (none/x.json) must be a file in a folder that exists"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_line(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *given]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


def test_the_defaults_of_every_measurement_parse() -> None:
    parser = build_parser()
    assert parser.parse_args(["bench", "generate"]).shape == "mid"
    assert parser.parse_args(["bench", "train"]).supervise == "image"
    assert parser.parse_args(["bench", "data", "--config", "x.yaml"]).batches == 20
    assert parser.parse_args(["bench", "startup"]).repeats == 5


def test_data_is_read_as_training_reads_it() -> None:
    report = bench_data(MINI, batches=2, repeats=2)
    rates = report.rates["rows a second"].values
    assert len(rates) == 2 and min(rates) > 0
    seconds = report.times["blip3o"]["total"].values
    assert report.settings["rows"] == pytest.approx(rates[0] * seconds[0])


def test_startup_times_processes_and_tells_which_failed() -> None:
    quick = [sys.executable, "-c", "pass"]
    report = bench_startup({"python": quick, "slow": [sys.executable, "-c", "import time; time.sleep(0.3)"]}, repeats=1)
    assert report.times["slow"]["total"].median > report.times["python"]["total"].median > 0
    with pytest.raises(ValueError, match="broken ended with code 3"):
        bench_startup({"broken": [sys.executable, "-c", "raise SystemExit(3)"]}, repeats=1)


def test_startup_measures_commands_that_exist(tmp_path: Path) -> None:
    for name, command in own_commands(tmp_path / "out.png").items():
        if name == "blip3o generate":
            assert build_parser().parse_args(command[3:]).output == tmp_path / "out.png"
        elif name.startswith("blip3o"):
            with pytest.raises(SystemExit, match="0"):
                build_parser().parse_args(command[3:])
